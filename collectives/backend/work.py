"""The handle of collectives that run beside the caller.

    executor's thread   part_done(call) for each call; the last one releases `wait` and hands the future to a helper
    helper thread       completes the future and runs the callbacks on it
    caller's thread     wait(), get_future()

A result or an error must reach three kinds of listener: a thread inside `wait`, Python code that holds the future, and
DDP's reducer, which holds it in C++. Python listeners get the exception object itself. C++ does not see an exception
set by `Future.set_exception`; it does see one raised by a callback. So the future that is handed out is always the
child of an inner future, `_now`, which only carries the event; the child's callback returns the tensors or raises.
Below the message of an error that a callback raises, torch prints the Python frames that it came through, and these
would be the last lines of a log. So the callback is `_OUTCOME`, which has no frame: it is written in C, and so is the
method of a finished generator that throws what it is given. `Promise` is such a future for other modules.

Callbacks may block, and may even start and await further collectives (torch's PowerSGD hook does). On the executor's
thread such a callback would wait for an op that only this thread can run. So futures are completed on helper threads,
and the pool never runs out of idle ones: a helper that is stuck in a callback does not delay the next future.
What callbacks queue on a device is ordered by the futures, see `staging.future_of`.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor

from collectives.backend.c10d import dist
from collectives.backend.meter import METER
from collectives.backend.profiled import OpEvent
from collectives.backend.staging import future_of
from collectives.backend.tensors import Call
from collectives.backend.untraced import untraced
from collectives.errors import NarrowgaugeError, OpTimeout

_ALWAYS = threading.Event()  # shared by finished works: one is made for every synchronous call
_ALWAYS.set()
_OUTCOME = operator.methodcaller("outcome")
"""Calls the attribute `outcome` of a future, which is set just before the future is completed."""


def _nothing() -> Generator[Any, None, None]:
    return
    yield


def _raising(error: BaseException) -> Callable[[], Any]:
    """What raises an error and has no frame."""
    if isinstance(error, NarrowgaugeError):
        error.__traceback__ = None  # frames of ours; its messages say more
    over = _nothing()
    next(over, None)
    return functools.partial(over.throw, error)


class Pending(Protocol):
    """What a `Promise` can follow: a work, or another promise."""

    def get_future(self) -> torch.futures.Future[Any]: ...

    def exception(self) -> BaseException | None:
        """The error, None if there is none so far."""


@untraced
class Promise:
    """A future of a tensor that code of ours completes; it hands errors on as a work does, without frames."""

    def __init__(self, result: Tensor) -> None:
        self._result = result
        self._error: BaseException | None = None
        self._now: Any = future_of([result])
        self._future: torch.futures.Future[Tensor] = self._now.then(_OUTCOME)

    def get_future(self) -> torch.futures.Future[Tensor]:
        return self._future

    def exception(self) -> BaseException | None:
        return self._error

    def wait(self) -> None:
        """Return when it is settled.

        Raises:
            Its error.
        """
        try:
            self._future.wait()
        except RuntimeError:
            if self._error is None:
                raise
        if self._error is not None:
            raise self._error

    def settle(self, error: BaseException | None = None) -> None:
        """Complete it, with an error if there is one; call it once, on the stream that has computed the result."""
        self._error, result = error, self._result
        self._now.outcome = (lambda: result) if error is None else _raising(error)
        self._now.set_result(result)

    def follow(self, pending: Pending, act: Callable[[], object]) -> Promise:
        """Call `act` when something has ended well, and settle; an error of either is this one's. Returns itself."""

        def ended(_: torch.futures.Future[Any]) -> None:
            error = pending.exception()
            if error is None:
                try:
                    act()
                except BaseException as problem:  # for whoever waits; a callback has nobody else to report to
                    error = problem
            self.settle(error)

        pending.get_future().then(ended)
        return self


@untraced
class NarrowgaugeWork(dist.Work):  # type: ignore[misc]
    """One or more calls that finish together.

    Args:
        calls: the calls; their outputs together are the result. Empty: the work is done already.
        group: name of the group, for messages.
        helpers: threads that complete futures; one is free at any time.
        held: the process group, which must not go while its ops run, whoever else drops it.

    Attributes:
        event: the work in torch's profiler, if that is active.
    """

    def __init__(
        self, calls: list[Call], group: str, helpers: ThreadPoolExecutor | None = None, held: object = None
    ) -> None:
        super().__init__()
        self._calls, self._group = calls, group
        self._outputs = [output for call in calls for output in call.outputs]
        self._helpers, self._held = helpers, held
        self.event: OpEvent | None = None
        self._left = len(calls)
        self._error: BaseException | None = None
        self._settled = threading.Event() if calls else _ALWAYS
        self._lock = threading.Lock()
        self._now: Any = None  # a Future[None] with the attribute `outcome`
        self._future: torch.futures.Future[list[Tensor]] | None = None

    @property
    def _name(self) -> str:
        named = ", ".join(str(call.spec) for call in self._calls[:3])
        return f"{named}{' ...' if len(self._calls) > 3 else ''} in {self._group}"

    def part_done(self, call: Call, error: BaseException | None) -> None:
        """One of the calls has ended, with `error` if it failed; called once for each of them."""
        if error is None and call.finish is not None:
            try:
                call.finish()
            except Exception as problem:  # for the caller; it must not end the thread that runs all ops
                error = problem
        METER.op_ended()
        with self._lock:
            self._error = self._error or error  # the first one is the cause; later ones follow from it
            self._left -= 1
            if self._left:
                return
            if self.event is not None:
                self.event.end()  # before `wait` returns: the profiler may be stopped next
            # Under the lock of `get_future`: a future taken before this is completed below, a later one over there.
            self._settled.set()
            now = self._now
            if now is not None:
                now.outcome = self._outcome()
        if now is not None:
            METER.future_settled()
            assert self._helpers is not None
            hand_over(self._helpers, now.set_result, None)
        self._held = None  # last: this may be the end of the group

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Return True when the result is there.

        Args:
            timeout: how long to wait at most; None or zero waits until the op has ended, which the group's own timeout
                sees to.

        Raises:
            CollectiveError: the op failed (the subclass says how).
            OpTimeout: `timeout` has passed; the op continues and still uses its tensors.
        """
        if not self._settled.is_set():
            limit_s = timeout.total_seconds() if timeout is not None else 0.0
            METER.caller_blocked()
            try:
                settled = self._settled.wait(limit_s if limit_s > 0 else None)
            finally:
                METER.caller_resumed()
            if not settled:
                raise OpTimeout(
                    f"{self._name}: not done after wait() has waited {limit_s:g} s; "
                    "the op continues and its tensors are still in use"
                )
        if self._error is not None:
            raise self._error
        return True

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        """A future of the output tensors; C++ sees a failure, too, as a RuntimeError with our message."""
        with self._lock:
            if self._future is not None:
                return self._future
            # None completes it, although outputs may be on a device: `from_host` has waited for them.
            now: Any = future_of(self._outputs)
            self._future = now.then(_OUTCOME)
            if self._settled.is_set():
                now.outcome = self._outcome()
                now.set_result(None)  # nobody has the child yet, so this runs no callback but `_OUTCOME`
            else:
                self._now = now
                METER.future_taken()
            return self._future

    def _outcome(self) -> Callable[[], list[Tensor]]:
        """What returns the outputs or raises the error of a work that has ended."""
        if self._error is None:
            outputs = self._outputs  # not by way of self, which holds the future that will hold this
            return lambda: outputs
        return _raising(self._error)

    def is_completed(self) -> bool:
        """Whether the op has ended, with or without an error."""
        return self._settled.is_set()

    def is_success(self) -> bool:
        """Whether the op has ended without an error."""
        return self._settled.is_set() and self._error is None

    def exception(self) -> BaseException | None:
        """The error, None if there is none so far."""
        return self._error

    def result(self) -> list[Tensor]:
        """The output tensors of an op that has ended.

        Raises:
            CollectiveError: the op failed.
            RuntimeError: the op has not ended yet.
        """
        if not self._settled.is_set():
            raise RuntimeError(f"{self._name}: result() before the op is done; wait() first")
        if self._error is not None:
            raise self._error
        return self._outputs

    def source_rank(self) -> int:
        """Only a receive has a source; a collective raises.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"{self._name}: only a receive from any rank has a source rank")

    _source_rank = source_rank

    def synchronize(self) -> None:
        """Nothing to do: `from_host` has waited for the device, so outputs are ready on every stream."""


def hand_over(helpers: ThreadPoolExecutor, function: Callable[..., object], *arguments: object) -> None:
    """Call a function on a helper; here, if the pool is shut down because the group or the program ends."""
    try:
        helpers.submit(function, *arguments)
    except RuntimeError:
        function(*arguments)


def finished(outputs: list[Tensor]) -> NarrowgaugeWork:
    """The handle of a call that is done already."""
    work = NarrowgaugeWork([], "")
    work._outputs = outputs
    return work
