"""A process that waits for a runner's end and, if the runner was killed, cleans up in its place.

    with Warden() as warden:
        warden.trust_group(pid)      # a process group to end
        warden.trust_lab(name)       # a lab to take down

The kernel kills a runner's own children with it, but not their children, and not the lab.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import TracebackType

from launcher.lab import life

_DONE = "done"


class Warden:
    """Forks, so it must be entered before the runner has threads."""

    def __enter__(self) -> Warden:
        read, self._write = os.pipe()
        if os.fork() == 0:
            os.close(self._write)
            _watch(read)
        os.close(read)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._tell(_DONE)
        os.close(self._write)

    def trust_group(self, pid: int) -> None:
        """Note a process group that must not outlive the runner."""
        self._tell(f"group {pid}")

    def trust_lab(self, name: str) -> None:
        """Note a lab that must not outlive the runner."""
        self._tell(f"lab {name}")

    def _tell(self, line: str) -> None:
        os.write(self._write, f"{line}\n".encode())


def _watch(read: int) -> None:
    """The warden's life; never returns."""
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(nowhere, fd)
        with os.fdopen(read, encoding="ascii") as pipe:
            lines = pipe.read().splitlines()
        if _DONE not in lines:
            _clean(lines)
        status = 0
    finally:
        os._exit(status)


def _clean(lines: list[str]) -> None:
    for line in lines:
        what, _, which = line.partition(" ")
        if what == "group":
            with suppress(ProcessLookupError):
                os.killpg(int(which), signal.SIGKILL)
    for line in lines:
        if line.startswith("lab "):
            life.down(line.removeprefix("lab "))
