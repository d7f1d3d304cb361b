"""A process that outlives a runner and, if the runner was killed, cleans up in its place.

    with Warden() as warden:
        warden.guard_group(pid)      # a process group to kill
        warden.guard_lab(name)       # a lab to take down

The runner's `finally` blocks do not run if it dies by SIGKILL, as under an out-of-memory killer. The kernel then kills
its tied children (`inside.start`), but not their children, and not the lab.

The warden is a forked process that reads a pipe to its end. The pipe ends when the runner closes it or dies, whatever
it dies of. If "done" is among the lines, the runner cleaned up itself.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import TracebackType

from launcher.lab import life

_DONE = "done"


class Warden:
    """Enter it before the runner has threads: the forked process would inherit locks that a thread held."""

    def __enter__(self) -> Warden:
        read, self._write = os.pipe()
        if os.fork() == 0:
            os.close(self._write)
            _watch(read)
        os.close(read)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._send(_DONE)
        os.close(self._write)

    def guard_group(self, pid: int) -> None:
        """Kill this process group if the runner is killed."""
        self._send(f"group {pid}")

    def guard_lab(self, name: str) -> None:
        """Take this lab down if the runner is killed."""
        self._send(f"lab {name}")

    def _send(self, line: str) -> None:
        os.write(self._write, f"{line}\n".encode())


def _watch(read: int) -> None:
    """Main function of the forked process; never returns."""
    status = 1
    try:
        os.setsid()  # Ctrl-C and a closing terminal signal the runner's group, and the warden must outlive it
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):  # a reader of the runner's output must not wait for the warden; errors still go to stderr
            os.dup2(nowhere, fd)
        with os.fdopen(read, encoding="ascii") as pipe:
            lines = pipe.read().splitlines()
        if _DONE not in lines:
            _clean(lines)
        status = 0
    finally:
        os._exit(status)  # without the exit handlers and buffers that were copied from the runner


def _clean(lines: list[str]) -> None:
    """Kill the groups first, so that nothing in the lab starts further processes while it goes down."""
    for line in lines:
        what, _, which = line.partition(" ")
        if what == "group":
            with suppress(ProcessLookupError):
                os.killpg(int(which), signal.SIGKILL)
    for line in lines:
        if line.startswith("lab "):
            life.down(line.removeprefix("lab "))
