"""Barriers that name who is missing: threads that share a store in memory, some of which stay away or come late."""

from __future__ import annotations

import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from collectives.backend.monitored_barrier import monitored_barrier
from collectives.errors import OpTimeout

SIZE = 4


def hold(timeout_s: float, away: Collection[int] = (), wait_all_ranks: bool = False) -> tuple[dict[int, str], float]:
    """What each rank that calls was told ("" if it passed), and the seconds it took."""
    store = dist.HashStore()
    began = time.monotonic()

    def call(rank: int) -> str:
        try:
            monitored_barrier(store, rank, SIZE, 7, timeout_s, wait_all_ranks)
        except OpTimeout as error:
            return str(error)
        return ""

    present = [rank for rank in range(SIZE) if rank not in away]
    with ThreadPoolExecutor(SIZE) as threads:
        told = dict(zip(present, threads.map(call, present), strict=True))
    return told, time.monotonic() - began


def test_all_come() -> None:
    told, seconds = hold(300.0)
    assert told == dict.fromkeys(range(SIZE), "")
    assert seconds < 100


def test_the_first_that_is_missing_is_named_to_all() -> None:
    told, _ = hold(2.0, away=[1, 3])
    assert "Rank 1 failed to pass monitoredBarrier in 2000 ms" in told[0]
    assert "Rank 2 successfully reached monitoredBarrier" in told[2]


def test_all_that_are_missing_are_named() -> None:
    told, _ = hold(2.0, away=[1, 3], wait_all_ranks=True)
    assert "Ranks 1, 3 failed to pass monitoredBarrier" in told[0]


def test_rank_0_does_not_come() -> None:
    told, _ = hold(0.2, away=[0])
    assert all("did not answer in 200 ms" in told[rank] for rank in (1, 2, 3))


def test_no_time_at_all() -> None:
    told, _ = hold(0.0, away=[1, 2, 3])
    assert "Rank 0 timed out in monitoredBarrier" in told[0]


def test_who_comes_late_is_told() -> None:
    store = dist.HashStore()
    with pytest.raises(OpTimeout, match="Rank 1 failed"):
        monitored_barrier(store, 0, SIZE, 0, 0.1)
    with pytest.raises(OpTimeout, match="this rank came too late"):
        monitored_barrier(store, 1, SIZE, 0, 0.1)
    with pytest.raises(OpTimeout, match="Rank 1 did not reach it"):
        monitored_barrier(store, 2, SIZE, 0, 0.1)
