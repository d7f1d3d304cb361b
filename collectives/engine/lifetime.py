"""What happens to engines when their process forks or ends.

A forked child (a DataLoader's worker, say) inherits the sockets. While it holds them open the peers cannot see that its
parent died, and if it sent anything, the peers would take it for its parent. So the child closes its
copies at once. Closing them does not end the connections: the parent's copies keep these open.

A process that ends without `close` announces to its peers how it ended: they may still need it. Without that they would
see only that it is gone, and report a death where a script has simply returned or raised. Processes of multiprocessing
(torch's mp.spawn) end without Python's atexit, so `_leave_all` is a finalizer of multiprocessing as well. After an
exception in the main thread it runs before the interpreter waits for other threads: they may wait for a peer that waits
for this process.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  its own hook joins its threads, and must have been registered before ours
import functools
import multiprocessing.util
import os
import sys
import threading
import weakref
from typing import Any, Protocol


class Member(Protocol):
    """An engine, as seen from here."""

    def leave(self) -> None: ...
    def abandon(self) -> None: ...
    def waits(self) -> dict[str, float]: ...
    def hang(self) -> dict[str, Any] | None: ...

    name: str


_members: weakref.WeakSet[Member] = weakref.WeakSet()


def joined(member: Member) -> None:
    """From now on its `leave` is called at exit and its `abandon` in forked children."""
    _leave_at_end_of(os.getpid())
    _members.add(member)


def left(member: Member) -> None:
    """It was closed in the ordinary way."""
    _members.discard(member)


def waits() -> dict[str, dict[str, float]]:
    """For each group that this process is a member of now: the poll time attributed to each rank, in seconds."""
    return {member.name: member.waits() for member in list(_members)}


def hangs() -> dict[str, dict[str, Any]]:
    """For each group that this process is a member of now: the last report of a hang that it has made, if any."""
    reports = {member.name: member.hang() for member in list(_members)}
    return {name: report for name, report in reports.items() if report is not None}


@atexit.register
def _leave_all() -> None:
    while _members:
        _members.pop().leave()


@functools.cache
def _leave_at_end_of(process: int) -> None:
    """Once for each process: a forked child starts without its parent's finalizers."""
    multiprocessing.util.Finalize(None, _leave_all, exitpriority=1)


def _leave_after_an_error() -> None:
    """Before threads are joined. Without an error they may still be at work, and the goodbye has to wait for them."""
    if getattr(sys, "last_value", None) is not None:
        _leave_all()


# What concurrent.futures uses; atexit's functions run only when all threads have ended.
getattr(threading, "_register_atexit", lambda function: None)(_leave_after_an_error)


def _abandon_all() -> None:
    for member in list(_members):
        member.abandon()
    _members.clear()


os.register_at_fork(after_in_child=_abandon_all)
