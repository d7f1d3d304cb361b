"""The handle of collectives that run beside the caller.

A Work is told by the executor's thread that its calls are done (`part_done`), and tells three kinds of listener: a
thread inside `wait`, whoever holds its future, and DDP's reducer, which is C++. An error must reach all three. Python
listeners get the exception object itself. C++ knows nothing of `Future.set_exception`; what it does see is an exception
raised by a callback, so the future that is handed out is always the child of one that merely says "now".

What people hang on futures may block, and may even call and await further collectives (torch's PowerSGD hook does).
On the executor's thread that would wait for itself, so futures are settled on helper threads, of which there
are always enough: one that is stuck in a callback does not keep the next future from being settled.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from collectives.backend.c10d import Work, dist
from collectives.backend.meter import METER
from collectives.backend.staging import from_host
from collectives.backend.tensors import Call
from collectives.errors import OpTimeout

_ALWAYS = threading.Event()
_ALWAYS.set()


class NarrowgaugeWork(dist.Work):  # type: ignore[misc]
    """One or more calls that finish together.

    Args:
        calls: what runs.
        group: what to call the group in messages.
        helpers: settles futures; has a thread free at any time.
    """

    def __init__(self, calls: list[Call], group: str, helpers: ThreadPoolExecutor | None = None) -> None:
        super().__init__()
        self._calls, self._group = calls, group
        self._outputs = [output for call in calls for output in call.outputs]
        self._helpers = helpers
        self._left = len(calls)
        self._error: BaseException | None = None
        self._settled = threading.Event() if calls else _ALWAYS
        self._lock = threading.Lock()
        self._now: torch.futures.Future[None] | None = None
        self._future: torch.futures.Future[list[Tensor]] | None = None

    @property
    def _name(self) -> str:
        named = ", ".join(str(call.spec) for call in self._calls[:3])
        return f"{named}{' ...' if len(self._calls) > 3 else ''} in {self._group}"

    def part_done(self, call: Call, error: BaseException | None) -> None:
        """One of the calls has ended, with `error` if it failed; called from the executor's thread."""
        if error is None and call.finish is not None:
            try:
                call.finish()
            except Exception as problem:
                error = problem
        METER.op_ended()
        with self._lock:
            self._error = self._error or error
            self._left -= 1
            if self._left:
                return
            self._settled.set()
            now = self._now
        if now is not None:
            METER.future_settled()
            self._settle(now)

    def _settle(self, now: torch.futures.Future[None]) -> None:
        try:
            assert self._helpers is not None
            self._helpers.submit(now.set_result, None)
        except RuntimeError:  # the group, or the whole program, is ending: nothing new will be called
            now.set_result(None)

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Return True when the result is there.

        Args:
            timeout: how long to wait at most; None or zero waits until the op has ended, which the group's own timeout
                sees to.

        Raises:
            CollectiveError: the op failed (the subclass says how).
            OpTimeout: `timeout` has passed; the op itself goes on and still uses its tensors.
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
                    f"{self._name}: waited {limit_s:g} s for it, as asked, and it is not done; "
                    "it goes on and its tensors are still in use"
                )
        if self._error is not None:
            raise self._error
        return True

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        """A future of the output tensors; holders in C++ see a failure too, as a RuntimeError with our message."""
        with self._lock:
            if self._future is not None:
                return self._future
            now: torch.futures.Future[None] = torch.futures.Future()
            self._future = now.then(self._value)
            if self._settled.is_set():
                now.set_result(None)
            else:
                self._now = now
                METER.future_taken()
            return self._future

    def _value(self, _: Any) -> list[Tensor]:
        if self._error is not None:
            raise self._error
        return self._outputs

    def is_completed(self) -> bool:
        """Whether the op has ended, well or not."""
        return self._settled.is_set()

    def is_success(self) -> bool:
        """Whether the op has ended well."""
        return self._settled.is_set() and self._error is None

    def exception(self) -> BaseException | None:
        """What went wrong, None if nothing did so far."""
        return self._error

    def result(self) -> list[Tensor]:
        """The output tensors of an op that has ended.

        Raises:
            CollectiveError: the op failed.
            RuntimeError: it has not ended yet.
        """
        if not self._settled.is_set():
            raise RuntimeError(f"{self._name}: result() before the op is done; wait() first")
        return self._value(None)

    def source_rank(self) -> int:
        """No collective has a single source.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"{self._name}: only a receive from any rank has a source rank")

    _source_rank = source_rank

    def synchronize(self) -> None:
        """Nothing to do: when an op has ended, its outputs are ready on every stream."""


def finished(outputs: list[Tensor]) -> NarrowgaugeWork:
    """The handle of something that is done already."""
    work = NarrowgaugeWork([], "")
    work._outputs = outputs
    return work


class _Received(dist.Work):  # type: ignore[misc]
    """A receive into host memory whose tensor lives elsewhere."""

    def __init__(self, work: Work, rooms: list[Tensor], given: list[Tensor]) -> None:
        super().__init__()
        self._work, self._rooms, self._given = work, rooms, given

    def wait(self, timeout: timedelta | None = None) -> bool:
        self._work.wait(timeout or timedelta(0))
        for room, tensor in zip(self._rooms, self._given, strict=True):
            from_host(room, tensor)
        return True

    def is_completed(self) -> bool:
        return bool(self._work.is_completed())

    def _source_rank(self) -> int:
        return int(self._work._source_rank())

    source_rank = _source_rank


def received(work: Work, rooms: list[Tensor], given: list[Tensor]) -> Work:
    """The handle of a receive into `rooms` whose result belongs in `given`."""
    in_place = all(room is tensor for room, tensor in zip(rooms, given, strict=True))
    return work if in_place else _Received(work, rooms, given)
