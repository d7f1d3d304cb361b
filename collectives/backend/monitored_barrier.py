"""`monitored_barrier`: a barrier that names the ranks that did not reach it.

It uses the group's store, not the connections between ranks: those may be what is broken, and a rank that hangs does
not accept a connection either. Rank 0 waits for a key of every other rank, then publishes the list of those missing.
The messages contain torch's own sentences, because scripts search for them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import timedelta

from collectives.backend.c10d import Store
from collectives.errors import OpTimeout


def monitored_barrier(
    store: Store, rank: int, size: int, number: int, timeout_s: float, wait_all_ranks: bool = False
) -> None:
    """Return when every rank of the group has called it.

    Args:
        store: the group's own.
        number: how many of these barriers the group has called before.
        timeout_s: seconds to wait at most.
        wait_all_ranks: rank 0 names all ranks that are missing, instead of the first.

    Raises:
        OpTimeout: a rank did not reach the barrier; on rank 0 the message names it.
    """
    meeting = f"monitored-barrier/{number}"
    if rank == 0:
        _collect(store, meeting, size, timeout_s, wait_all_ranks)
    else:
        _check_in(store, meeting, rank, timeout_s)


def _collect(store: Store, meeting: str, size: int, timeout_s: float, wait_all_ranks: bool) -> None:
    deadline = time.monotonic() + timeout_s
    missing: list[int] = []
    for other in range(1, size):
        if missing and not wait_all_ranks:
            break
        if not _appears(store, f"{meeting}/{other}", deadline - time.monotonic()):
            missing.append(other)
    store.set(f"{meeting}/verdict", json.dumps(missing))
    if not missing:
        return
    if timeout_s <= 0:
        raise OpTimeout(f"[Rank 0]: Rank 0 timed out in monitoredBarrier after {timeout_s * 1000:.0f} ms")
    raise OpTimeout(f"[Rank 0]: {_named(missing)} failed to pass monitoredBarrier in {timeout_s * 1000:.0f} ms")


def _check_in(store: Store, meeting: str, rank: int, timeout_s: float) -> None:
    store.set(f"{meeting}/{rank}", "")
    reached = (
        f"[Rank {rank}]: Rank {rank} successfully reached monitoredBarrier, but received errors while waiting for "
        "send/recv from rank 0"
    )
    if not _appears(store, f"{meeting}/verdict", timeout_s):
        raise OpTimeout(f"{reached}: rank 0 did not answer in {timeout_s * 1000:.0f} ms; see its log")
    missing = json.loads(store.get(f"{meeting}/verdict"))
    if rank in missing:
        raise OpTimeout(f"{reached}: this rank came too late; rank 0 had stopped waiting for it")
    if missing:
        raise OpTimeout(f"{reached}: {_named(missing)} did not reach it")


def _appears(store: Store, key: str, timeout_s: float) -> bool:
    if timeout_s < 0.001:  # stores count milliseconds, and take 0 for no limit at all
        return bool(store.check([key]))
    try:
        store.wait([key], timedelta(seconds=timeout_s))
    except RuntimeError:  # each kind of store raises another type at a timeout
        return bool(store.check([key]))
    return True


def _named(ranks: Sequence[int]) -> str:
    return f"Rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
