"""Reads what has been added to growing text files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.record.run_dir import RunDir


class Tail:
    """Complete lines as they are added to a file, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new_lines(self, *, rest: bool = False) -> list[str]:
        """Lines since the last call.

        Args:
            rest: also an incomplete last line; for a file that grows no more.
        """
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        # Cut in bytes, before decoding: a character of several bytes may be half there.
        whole = text if rest else text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()


class LogTails:
    """New lines of the logs of some ranks."""

    def __init__(self, run_dir: RunDir, ranks: Sequence[int]) -> None:
        self._tails = {rank: Tail(run_dir.log(rank)) for rank in ranks}

    def new_lines(self, *, rest: bool = False) -> Iterator[tuple[int, str]]:
        """Each line with its rank."""
        for rank, tail in self._tails.items():
            yield from ((rank, line) for line in tail.new_lines(rest=rest))
