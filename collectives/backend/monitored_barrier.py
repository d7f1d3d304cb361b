"""`monitored_barrier`: a barrier that says who did not come.

It goes through the group's store and not through connections between ranks: those may be what is broken, and a rank
that never speaks also never answers a connection. Rank 0 waits for every other rank's word, then gives its verdict.
The sentences contain torch's own, since scripts look for them.
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
        number: which call of the group's this is, counted from 0.
        timeout_s: seconds to wait at most.
        wait_all_ranks: rank 0 names all ranks that did not come, instead of the first.

    Raises:
        OpTimeout: a rank did not come; on rank 0 it names which.
    """
    meeting = f"monitored-barrier/{number}"
    if rank == 0:
        _call(store, meeting, size, timeout_s, wait_all_ranks)
    else:
        _answer(store, meeting, rank, timeout_s)


def _call(store: Store, meeting: str, size: int, timeout_s: float, wait_all_ranks: bool) -> None:
    deadline = time.monotonic() + timeout_s
    missing: list[int] = []
    for other in range(1, size):
        if missing and not wait_all_ranks:
            break
        if not _comes(store, f"{meeting}/{other}", deadline - time.monotonic()):
            missing.append(other)
    store.set(f"{meeting}/verdict", json.dumps(missing))
    if not missing:
        return
    if timeout_s <= 0:
        raise OpTimeout(f"[Rank 0]: Rank 0 timed out in monitoredBarrier after {timeout_s * 1000:.0f} ms")
    raise OpTimeout(f"[Rank 0]: {_named(missing)} failed to pass monitoredBarrier in {timeout_s * 1000:.0f} ms")


def _answer(store: Store, meeting: str, rank: int, timeout_s: float) -> None:
    store.set(f"{meeting}/{rank}", "")
    reached = (
        f"[Rank {rank}]: Rank {rank} successfully reached monitoredBarrier, but received errors while waiting for "
        "send/recv from rank 0"
    )
    if not _comes(store, f"{meeting}/verdict", timeout_s):
        raise OpTimeout(f"{reached}: it gave no verdict in {timeout_s * 1000:.0f} ms; see its log")
    missing = json.loads(store.get(f"{meeting}/verdict"))
    if rank in missing:
        raise OpTimeout(f"{reached}: this rank came too late, and rank 0 had given up waiting for it")
    if missing:
        raise OpTimeout(f"{reached}: it waited in vain for {_named(missing)}")


def _comes(store: Store, key: str, timeout_s: float) -> bool:
    if timeout_s < 0.001:  # stores count milliseconds, and take 0 for no limit at all
        return bool(store.check([key]))
    try:
        store.wait([key], timedelta(seconds=timeout_s))
    except RuntimeError:  # what stores raise at a timeout differs from one to the other
        return bool(store.check([key]))
    return True


def _named(ranks: Sequence[int]) -> str:
    return f"Rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
