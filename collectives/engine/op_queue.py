"""The order of a group's ops, and the thread that runs those which nobody waits for in person.

In: ops, from any thread. Out: calls of `execute`, one at a time, in the order in which ops came in. Every rank must
run the same ops in the same order, so there is one line and no priorities.

    start   puts an op in line; the queue's thread runs it and then calls `done`
    run     returns when the op is over. If the queue is idle the caller's own thread runs it: handing a small op to
            another thread and being woken again costs more than the op

Whoever runs an op sets `_worker` under the lock and clears it afterwards, so the thread and callers exclude each
other without holding the lock while an op runs. A small op takes the lock twice and allocates nothing here.

After `refuse` nothing new is taken. The thread hands what still waits to `execute`, which refuses it, so that every
`done` is called exactly once, and ends when the line is empty. `close` waits for that.

A signal handler runs on top of what its thread was at, and that may be an op. There the end of the op cannot be waited
for, only brought about: by an exception from the handler. Python calls handlers between two steps of any code, this
too, so one attribute says whether the own thread runs an op, and it is cleared before anything else is called.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from collectives.engine.hangs.call_site import CallSite, call_site
from collectives.schedule.op import OpSpec

Done = Callable[[BaseException | None], None]
Execute = Callable[[OpSpec, int, int, float, int], None]
"""Runs one op to its end: spec, addresses of source and target, seconds without progress, address of the residual."""
logger = logging.getLogger(__name__)


@dataclass
class _Call:
    spec: OpSpec
    source: int
    target: int
    timeout_s: float
    residual: int
    done: Done
    caller: CallSite | None


class OpQueue:
    """Runs ops one after the other.

    Args:
        name: of the group and this rank in it, for logs and the thread.
        execute: runs an op; raises what went wrong with it.
        fail: called with whatever `execute` or an interrupted wait raised, before the op's caller learns of it.
        refusal: the error for an op that comes after `close`.

    Attributes:
        closing: `refuse` or `close` was called.
        caller: who started the op that the thread runs, or ran last.
    """

    def __init__(
        self,
        name: str,
        execute: Execute,
        fail: Callable[[BaseException], None],
        refusal: Callable[[OpSpec], BaseException],
    ) -> None:
        self.closing = False
        self.caller: CallSite | None = None
        self._name, self._execute, self._fail, self._refusal = name, execute, fail, refusal
        self._lock = threading.Condition()
        self._calls: collections.deque[_Call] = collections.deque()
        self._worker: int | None = None  # identifier of the thread that runs an op
        self._has_closer = self._thread_ended = False
        self._thread = threading.Thread(target=self._serve, name=f"narrowgauge {name}", daemon=True)
        self._thread.start()

    def start(
        self, spec: OpSpec, source: int, target: int, timeout_s: float, residual: int, done: Done,
        caller: CallSite | None = None,
    ) -> None:  # fmt: skip
        """Put an op in line; `done` is called on the queue's thread."""
        call = _Call(spec, source, target, timeout_s, residual, done, caller or call_site())
        with self._lock:
            if self.closing:
                raise self._refusal(spec)
            self._calls.append(call)
            self._lock.notify_all()

    def run(self, spec: OpSpec, source: int, target: int, timeout_s: float, residual: int) -> None:
        """Run an op in the caller's thread if the queue is idle, else in its turn; returns when it is over."""
        inline, here = False, threading.get_ident()
        try:
            with self._lock:
                # `inline` is set first: an interrupt between the two lines must not leave `_worker` set for ever.
                inline = self._worker is None and not self._calls and not self.closing
                if inline:
                    self._worker = here
            if inline:
                self._execute(spec, source, target, timeout_s, residual)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            if inline:
                if self._worker == here:
                    self._worker = None  # before a call, in which a signal handler may want to close
                with self._lock:
                    if self._calls or self.closing:
                        self._lock.notify_all()
        if not inline:
            self._run_in_turn(spec, source, target, timeout_s, residual)

    def is_thread(self, identifier: int) -> bool:
        """Whether that is the queue's thread."""
        return self._thread.ident == identifier

    def runs_in_this_thread(self) -> bool:
        """Whether an op is under way in the calling thread, which then is in a signal handler."""
        return self._worker == threading.get_ident()

    def refuse(self) -> None:
        """Take no more ops; those that wait are refused in turn. Returns at once."""
        with self._lock:
            self.closing = True
            self._lock.notify_all()

    def close(self, interrupt: Callable[[], object]) -> bool:
        """Take no more ops; returns when none runs and none waits. False if it was closed before, or another thread
        does so. Not to be called where an op `runs_in_this_thread`.

        Args:
            interrupt: makes a running `execute` look up.
        """
        self.refuse()
        with self._lock:
            if self._has_closer:
                return False
            self._has_closer = True
        interrupt()
        with self._lock:  # beneath a signal handler this thread may hold it already: only a wait gives it up
            self._lock.wait_for(lambda: self._thread_ended and self._worker is None)
        self._thread.join()
        return True

    def abandon(self) -> None:
        """In a forked child, which has no such thread: take no more ops."""
        self.closing = self._has_closer = True
        self._worker = None
        self._lock = threading.Condition()  # the old one may be held by a thread that exists in the parent only

    def _run_in_turn(self, spec: OpSpec, source: int, target: int, timeout_s: float, residual: int) -> None:
        finished, outcome = threading.Event(), []

        def done(error: BaseException | None) -> None:
            outcome.append(error)
            finished.set()

        self.start(spec, source, target, timeout_s, residual, done)
        try:
            finished.wait()
        except BaseException as error:
            # The caller's buffers go when this frame does, so the op must be over first: break it, then wait again.
            self._fail(error)
            finished.wait()
            raise
        if outcome[0] is not None:
            raise outcome[0]

    def _serve(self) -> None:
        """The thread."""
        while (call := self._next()) is not None:
            error: BaseException | None = None
            try:
                self._execute(call.spec, call.source, call.target, call.timeout_s, call.residual)
            except BaseException as caught:  # whatever it is belongs to the caller
                self._fail(caught)
                error = caught
            with self._lock:
                self._worker = None
                self._lock.notify_all()
            try:
                call.done(error)
            except Exception:
                logger.exception("%s: a callback of %s failed", self._name, call.spec)

    def _next(self) -> _Call | None:
        """Wait for the next op and claim the queue for it; None when the queue is closed and empty."""
        with self._lock:
            self._lock.wait_for(lambda: self._worker is None if self._calls else self.closing)
            if not self._calls:
                self._thread_ended = True
                self._lock.notify_all()
                return None
            self._worker = threading.get_ident()
            call = self._calls.popleft()
            self.caller = call.caller
            return call
