"""`monitored_barrier` on the engine: a barrier that names the ranks that did not reach it.

Each rank sends an empty message to rank 0 and waits for its verdict: a byte for each rank, 1 for those missing. Both
travel on the connections for messages, so nobody takes part who has not proved the group's token. Each barrier has a
tag of its own, so what comes late belongs to no other one.

The errors contain torch's own sentences, because scripts search for them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from collectives.engine.messages.frames import BARRIER_TAG, CODE_OF
from collectives.engine.messages.matching import Request
from collectives.errors import CollectiveError, OpTimeout

if TYPE_CHECKING:  # on Gloo the engine is never loaded
    from collectives.engine.messages.messenger import Messenger


def monitored_barrier(
    messenger: Messenger, rank: int, size: int, number: int, timeout_s: float, wait_all_ranks: bool = False
) -> None:
    """Return when every rank of the group has called it.

    Args:
        number: how many of these barriers the group has called before.
        timeout_s: seconds to wait at most.
        wait_all_ranks: rank 0 names all ranks that are missing, instead of the first.

    Raises:
        OpTimeout: a rank did not reach the barrier; on rank 0 the message names it. The group stays whole.
        CollectiveError: a rank died or left before it reached the barrier, or the group broke earlier.
    """
    meeting = _Meeting(messenger, BARRIER_TAG + number, timeout_s)
    if rank == 0:
        _collect(meeting, size, wait_all_ranks)
    else:
        _check_in(meeting, rank, size)


class _Meeting:
    """The messages of one barrier."""

    def __init__(self, messenger: Messenger, tag: int, timeout_s: float) -> None:
        self._messenger, self._tag = messenger, tag
        self._deadline = time.monotonic() + timeout_s
        self.timeout_s = timeout_s
        self.within = f"in {timeout_s * 1000:.0f} ms"

    def send(self, peer: int, content: bytes = b"") -> Request:
        return self._start(True, peer, memoryview(content))

    def receive(self, peer: int, room: bytearray | None = None) -> Request:
        return self._start(False, peer, memoryview(bytearray() if room is None else room))

    def _start(self, is_send: bool, peer: int, view: memoryview) -> Request:
        request = Request(is_send, peer, self._tag, view, CODE_OF["uint8"], view)
        return self._messenger.start(request)

    def ends(self, receive: Request) -> bool:
        """Whether a receive ends in time, well or not; one that does not is taken back."""
        left_s = self._deadline - time.monotonic()
        if self._messenger.test(receive) or (left_s > 0 and self._messenger.wait(receive, math.inf, left_s)):
            return True
        if self._messenger.withdraw(receive):
            return False
        return self._messenger.wait(receive, max(self.timeout_s, 1.0))  # its message has begun to arrive

    def withdraw(self, receive: Request) -> None:
        self._messenger.withdraw(receive)


def _collect(meeting: _Meeting, size: int, wait_all_ranks: bool) -> None:
    arrivals = {peer: meeting.receive(peer) for peer in range(1, size)}
    missing: dict[int, BaseException | None] = {}  # and why, if not for want of time
    for peer, arrival in arrivals.items():
        if missing and not wait_all_ranks:
            meeting.withdraw(arrival)
        elif not meeting.ends(arrival):
            missing[peer] = None
        elif arrival.error is not None:
            missing[peer] = arrival.error
    verdict = bytes(rank in missing for rank in range(size))
    with contextlib.suppress(CollectiveError):  # the group broke, which the others know
        for peer in arrivals:
            meeting.send(peer, verdict)
    if not missing:
        return
    error = next((each for each in missing.values() if each is not None), None)
    if error is None and meeting.timeout_s <= 0:
        raise OpTimeout(f"[Rank 0]: Rank 0 timed out in monitoredBarrier after {meeting.timeout_s * 1000:.0f} ms")
    raise _failed(f"[Rank 0]: {_named(list(missing))} failed to pass monitoredBarrier {meeting.within}", error)


def _check_in(meeting: _Meeting, rank: int, size: int) -> None:
    verdict = bytearray(size)
    answer = meeting.receive(0, verdict)
    meeting.send(0)
    reached = (
        f"[Rank {rank}]: Rank {rank} successfully reached monitoredBarrier, but received errors while waiting for "
        "send/recv from rank 0"
    )
    if not meeting.ends(answer):
        raise OpTimeout(f"{reached}: rank 0 did not answer {meeting.within}; see its log")
    if answer.error is not None:
        raise _failed(reached, answer.error)
    missing = [other for other in range(size) if verdict[other]]
    if rank in missing:
        raise OpTimeout(f"{reached}: this rank came too late; rank 0 had stopped waiting for it")
    if missing:
        raise OpTimeout(f"{reached}: {_named(missing)} did not reach it")


def _failed(what: str, cause: BaseException | None) -> CollectiveError:
    if cause is None:
        return OpTimeout(what)
    if isinstance(cause, CollectiveError):
        return type(cause)(f"{what}: {cause}", cause.culprit)
    return CollectiveError(f"{what}: {cause}")


def _named(ranks: Sequence[int]) -> str:
    return f"Rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
