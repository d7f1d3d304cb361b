"""send, recv and their relatives: torch's tensors in, requests to the engine's messenger or to Gloo, Works back.

A message of the engine's is a run of bytes with a tag, a length and a dtype. Its receiver must name the same length and
dtype, but the shape may differ, as over Gloo. uint8 stands for plain bytes and fits every dtype.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from collectives.backend.c10d import GlooGroup, Work, dist
from collectives.backend.meter import METER
from collectives.backend.monitored_barrier import monitored_barrier
from collectives.backend.profiled import OpEvent
from collectives.backend.staging import from_host, future_of, room_for, to_host
from collectives.backend.untraced import untraced
from collectives.errors import OpTimeout, UsageError

if TYPE_CHECKING:  # on Gloo the engine is never loaded
    from collectives.engine.messages.matching import Request
    from collectives.engine.messages.messenger import Messenger


class Messages(Protocol):
    """What carries a group's messages. Calls return at once.

    A message under way holds `held`, the group, and ends `event`, if there is one.
    """

    def send(
        self, given: list[Tensor], rank: int, tag: int, timeout_s: float, held: object, event: OpEvent | None
    ) -> Work: ...

    def receive(
        self, given: list[Tensor], rank: int | None, tag: int, timeout_s: float, held: object, event: OpEvent | None
    ) -> Work:
        """`rank` None: from any rank."""
        ...

    def monitored_barrier(self, rank: int, size: int, timeout_s: float, wait_all_ranks: bool) -> None:
        """See `monitored_barrier.py`.

        Raises:
            CollectiveError: a rank did not reach it; rank 0 names it.
        """

    def close(self) -> None:
        """Release what is not the executor's."""


class EngineMessages:
    """Messages on the engine's own connections.

    Args:
        helpers: threads that complete futures.
    """

    def __init__(self, messenger: Messenger, helpers: ThreadPoolExecutor) -> None:
        self._messenger, self._helpers = messenger, helpers
        self._barriers = itertools.count()

    def monitored_barrier(self, rank: int, size: int, timeout_s: float, wait_all_ranks: bool) -> None:
        monitored_barrier(self._messenger, rank, size, next(self._barriers), timeout_s, wait_all_ranks)

    def close(self) -> None:
        """Nothing to do: the engine closes its messenger."""

    def send(
        self, given: list[Tensor], rank: int, tag: int, timeout_s: float, held: object, event: OpEvent | None
    ) -> Work:
        (tensor,) = _single("send", given)
        host = to_host(tensor)
        request = self._messenger.send(rank, tag, host.data_ptr(), host.nbytes, _dtype(host), host)
        return MessageWork(self._messenger, request, tensor, host, timeout_s, self._helpers, held, event)

    def receive(
        self, given: list[Tensor], rank: int | None, tag: int, timeout_s: float, held: object, event: OpEvent | None
    ) -> Work:
        (tensor,) = _single("recv", given)
        host = room_for(tensor)
        request = self._messenger.receive(rank, tag, host.data_ptr(), host.nbytes, _dtype(host), host)
        return MessageWork(self._messenger, request, tensor, host, timeout_s, self._helpers, held, event)


class GlooMessages:
    """Messages on the Gloo group that also executes the collectives, and leaves events in the profiler itself."""

    def __init__(self, gloo: GlooGroup) -> None:
        self._gloo: GlooGroup | None = gloo

    def monitored_barrier(self, rank: int, size: int, timeout_s: float, wait_all_ranks: bool) -> None:
        assert self._gloo is not None
        try:
            self._gloo.monitored_barrier(timedelta(seconds=timeout_s), wait_all_ranks)
        except RuntimeError as error:
            raise OpTimeout(str(error)) from None

    def close(self) -> None:
        self._gloo = None

    def send(
        self, given: list[Tensor], rank: int, tag: int, timeout_s: float, held: object, event: OpEvent | None
    ) -> Work:
        assert self._gloo is not None  # the group checks that it is open
        return self._gloo.send([to_host(each) for each in given], rank, tag)

    def receive(
        self, given: list[Tensor], rank: int | None, tag: int, timeout_s: float, held: object, event: OpEvent | None
    ) -> Work:
        landings = [room_for(each) for each in given]
        assert self._gloo is not None
        work = self._gloo.recv_anysource(landings, tag) if rank is None else self._gloo.recv(landings, rank, tag)
        in_place = all(landing is tensor for landing, tensor in zip(landings, given, strict=True))
        return work if in_place else _Received(work, landings, given)


@untraced
class MessageWork(dist.Work):  # type: ignore[misc]
    """The handle of a message on the engine's connections.

    Args:
        tensor: the caller's; a received message is copied to it from `host` by the first who learns that it is there.
        host: plain memory that is sent or received into; the tensor itself if that is plain.
        timeout_s: seconds without progress, while somebody waits, after which the group breaks.
        helpers: threads that complete futures.
        held: the process group, which must not go while its messages are under way and awaited.
        event: the message in torch's profiler, if that is active.
    """

    def __init__(
        self, messenger: Messenger, request: Request, tensor: Tensor, host: Tensor, timeout_s: float,
        helpers: ThreadPoolExecutor, held: object, event: OpEvent | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._messenger, self._request, self._tensor, self._host = messenger, request, tensor, host
        self._timeout_s, self._helpers, self._held = timeout_s, helpers, held
        self._future: torch.futures.Future[list[Tensor]] | None = None
        self._copying = threading.RLock()  # a signal handler may wait for the message whose copy it interrupts
        self._event = event
        if event is not None:  # on a helper, since a thread that waits may also be the one that moves the bytes
            messenger.when_done(request, lambda: self._complete(event.end))

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Return True when the message has been handed to the kernel (send) or is in the tensor (receive).

        Args:
            timeout: how long to wait at most; None or zero waits until the group's own timeout breaks the group.

        Raises:
            CollectiveError: the message failed (the subclass says how).
            OpTimeout: `timeout` has passed; the message is still under way and uses its tensor.
        """
        if not self._request.done:
            limit_s = timeout.total_seconds() if timeout is not None else 0.0
            METER.caller_blocked()
            try:
                ended = self._messenger.wait(self._request, self._timeout_s, limit_s if limit_s > 0 else None)
            finally:
                METER.caller_resumed()
            if not ended:
                raise OpTimeout(
                    f"{self._messenger.describe(self._request)}: not done after wait() has waited {limit_s:g} s; "
                    "the message is still under way and its tensor in use"
                )
        self._settle()
        return True

    def _settle(self) -> None:
        if self._event is not None:
            self._event.wait()  # the profiler may be stopped next
        self._held = None
        if self._request.error is not None:
            raise self._request.error
        if not self._request.is_send and self._host is not self._tensor:
            with self._copying:  # `wait` and a future's callback may come at once, and who has waited may write to it
                if self._host is not self._tensor:
                    from_host(self._host, self._tensor)
                    self._host = self._tensor

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        """A future of the tensor in a list; C++ sees a failure, too, as a RuntimeError with our message."""
        if self._future is None:
            now = future_of([self._tensor])  # None completes it: `from_host` waits for the device
            self._future = now.then(self._value)
            self._messenger.when_done(self._request, lambda: self._complete(lambda: now.set_result(None)))
        return self._future

    def _complete(self, settle: Callable[[], object]) -> None:
        """On a helper: what hangs on the future may block, and must not block who moves the bytes."""
        try:
            self._helpers.submit(settle)
        except RuntimeError:  # the pool is shut down, as the group or the program ends: callbacks run here, or never
            settle()

    def _value(self, _: Any) -> list[Tensor]:
        self._settle()
        return [self._tensor]

    def is_completed(self) -> bool:
        """Whether the message has ended, with or without an error. A loop that asks makes progress."""
        done = self._messenger.test(self._request)
        if done and self._request.error is None:
            self._settle()
        return done

    def is_success(self) -> bool:
        return self._request.done and self._request.error is None

    def exception(self) -> BaseException | None:
        """The error, None if there is none so far."""
        return self._request.error

    def result(self) -> list[Tensor]:
        """The tensor in a list.

        Raises:
            CollectiveError: the message failed.
            RuntimeError: the message is still under way.
        """
        if not self._request.done:
            raise RuntimeError(f"{self._messenger.describe(self._request)}: result() before it is done; wait() first")
        self._settle()
        return [self._tensor]

    def source_rank(self) -> int:
        """The rank in the group from which a finished receive came.

        Raises:
            RuntimeError: it is a send, or not done yet.
        """
        if self._request.is_send or not self._request.done or self._request.peer is None:
            raise RuntimeError(f"{self._messenger.describe(self._request)}: only a finished receive has a source rank")
        return self._request.peer

    _source_rank = source_rank

    def synchronize(self) -> None:
        """Nothing to do: `from_host` has waited for the device, so the tensor is ready on every stream."""


@untraced
class _Received(dist.Work):  # type: ignore[misc]
    """A receive of Gloo's into host memory; `wait` copies the result to the caller's tensors."""

    def __init__(self, work: Work, landings: list[Tensor], given: list[Tensor]) -> None:
        super().__init__()
        self._work, self._landings, self._given = work, landings, given

    def wait(self, timeout: timedelta | None = None) -> bool:
        self._work.wait(timeout or timedelta(0))
        for landing, tensor in zip(self._landings, self._given, strict=True):
            from_host(landing, tensor)
        return True

    def is_completed(self) -> bool:
        return bool(self._work.is_completed())

    def _source_rank(self) -> int:
        return int(self._work._source_rank())

    source_rank = _source_rank


def _single(call: str, given: list[Tensor]) -> list[Tensor]:
    if len(given) != 1:
        raise UsageError(f"{call}: got {len(given)} tensors; wanted one")
    return given


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
