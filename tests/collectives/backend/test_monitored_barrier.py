"""Barriers that name who is missing: engines as threads, some of which stay away or come late; and real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from collectives.backend.monitored_barrier import monitored_barrier
from collectives.engine.runner import Engine
from collectives.errors import CollectiveError, OpTimeout, PeerLost
from tests.collectives.engine.group import AT_ONCE_S, engines, on_all
from tests.processes import run

SIZE = 4
HOSTS = list("abcd")


def hold(
    group: list[Engine], number: int, timeout_s: float, away: Collection[int] = (), wait_all_ranks: bool = False
) -> dict[int, str]:
    """What each rank that calls was told, "" if it passed."""

    def call(rank: int) -> str:
        if rank not in away:
            try:
                monitored_barrier(group[rank].messages, rank, SIZE, number, timeout_s, wait_all_ranks)
            except OpTimeout as error:
                return str(error)
        return ""

    return dict(enumerate(on_all(SIZE, call)))


def test_who_comes_and_who_does_not() -> None:
    """One group for all of it: a barrier that fails leaves the group whole."""
    with engines(HOSTS) as group:
        began = time.monotonic()
        assert set(hold(group, 0, 300.0).values()) == {""}
        assert time.monotonic() - began < AT_ONCE_S
        told = hold(group, 1, 1.0, away=[1, 3])
        assert "Rank 1 failed to pass monitoredBarrier in 1000 ms" in told[0]
        assert "Rank 2 successfully reached monitoredBarrier" in told[2]
        told = hold(group, 2, 1.0, away=[1, 3], wait_all_ranks=True)
        assert "Ranks 1, 3 failed to pass monitoredBarrier" in told[0]
        told = hold(group, 3, 0.2, away=[0])
        assert all("did not answer in 200 ms" in told[rank] for rank in (1, 2, 3))
        told = hold(group, 4, 0.0, away=[1, 2, 3])
        assert "Rank 0 timed out in monitoredBarrier" in told[0]
        assert "this rank came too late" in hold(group, 1, 1.0, away=[0, 2, 3])[1]
        assert "Rank 1 did not reach it" in hold(group, 1, 1.0, away=[0, 1, 2])[3]
        assert set(hold(group, 5, 300.0).values()) == {""}


def forged(rank: int, size: int, store: Any) -> str:
    """Rank 1 stays away, and whoever can write to the store says that it came."""
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    group: Any = dist.group.WORLD
    dist.barrier()
    said = ""
    if rank == 1:
        for key in ("monitored-barrier/0/1", "monitored-barrier/0/verdict"):
            group.get_group_store().set(key, "[]")
        store.wait(["tried"], timedelta(seconds=100))
        with pytest.raises(OpTimeout, match="came too late"):
            group.monitored_barrier(timedelta(seconds=100))
    else:
        with pytest.raises(OpTimeout) as caught:
            group.monitored_barrier(timedelta(seconds=2))
        said = str(caught.value)
        store.set("tried", "")
    group.monitored_barrier(timedelta(seconds=100))
    dist.all_reduce(torch.ones(1))
    dist.destroy_process_group()
    return said


def test_what_a_stranger_writes_to_the_store_says_nothing() -> None:
    results = run(forged, 2, environment={"NARROWGAUGE_TOKEN": "0123456789abcdef"})
    assert results == ["[Rank 0]: Rank 1 failed to pass monitoredBarrier in 2000 ms", ""]


def dies(rank: int, size: int, store: Any) -> tuple[str, int | None, float]:
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(CollectiveError) as caught:
        dist.group.WORLD.monitored_barrier(timedelta(seconds=300))  # type: ignore[union-attr]
    assert isinstance(caught.value, PeerLost)
    return str(caught.value), caught.value.culprit, time.monotonic() - began


def test_a_rank_that_dies_is_named_at_once() -> None:
    results = run(dies, 3, may_die={1})
    for text, culprit, seconds in (results[0], results[2]):
        assert culprit == 1
        assert "rank 1 (" in text
        assert seconds < AT_ONCE_S
    assert "Rank 1 failed to pass monitoredBarrier" in results[0][0]


def absent_on_gloo(rank: int, size: int, store: Any) -> str:
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    group: Any = dist.group.WORLD
    group.monitored_barrier(timedelta(seconds=100), wait_all_ranks=True)
    said = ""
    if rank == 0:
        with pytest.raises(OpTimeout) as caught:
            group.monitored_barrier(timedelta(seconds=1))
        said = str(caught.value)
        store.set("tried", "")
    store.wait(["tried"], timedelta(seconds=100))
    return said


def test_on_gloo_it_is_gloos_own() -> None:
    results = run(absent_on_gloo, 2, environment={"NARROWGAUGE_BACKEND": "gloo"})
    assert "Rank 1 failed to pass monitoredBarrier in 1000 ms" in results[0]
