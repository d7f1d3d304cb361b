"""Output streams that survive their reader: a run does not fail when nobody reads its output any more, as in
`launcher submit x | head -1`, or when the terminal behind a pipe is closed.

SIGPIPE's default would end the launcher, and with it a run of days; Python ignores it and raises BrokenPipeError at the
next write instead, from wherever that is: a view, a log line, a library. So it is caught in the stream itself.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


def ignore_broken_pipe(stream: TextIO) -> TextIO:
    """The stream, which discards what is written after its reader has gone."""
    return cast(TextIO, _IgnoringBrokenPipe(stream))


class _IgnoringBrokenPipe:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._discard_from_now()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard_from_now()

    # Everything else, such as isatty and fileno, is the stream's own.
    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _discard_from_now(self) -> None:
        """Point the stream's file descriptor at /dev/null. What is still in its buffer goes there, too; otherwise
        Python would try to flush it once more at exit, and end with status 120."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        with suppress(OSError):  # stderr may have had the same reader
            print("the reader of the output is gone; the run continues", file=sys.__stderr__, flush=True)
