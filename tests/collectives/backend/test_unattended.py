"""A group whose last reference goes without `shutdown`: its peers learn of it at once, and nothing of it stays."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

import collectives
from collectives.backend.process_group import NarrowgaugeGroup
from collectives.options import Options
from tests.processes import run

A_WHILE = timedelta(seconds=80)  # for another rank to come as far
SECONDS = 20.0  # what is at once must take less, on a loaded machine too; the group's timeout is 100 s


def form(store: Any, rank: int, size: int, name: str, backend: str = "narrowgauge") -> NarrowgaugeGroup:
    return NarrowgaugeGroup(dist.PrefixStore(name, store), rank, size, name, 100.0, Options(backend=backend))


def holdings() -> tuple[set[str], int, int]:
    """This process's threads, by name, and their number in the kernel, and the number of its open files."""
    names = {thread.name for thread in threading.enumerate() if not thread.name.startswith("Dummy")}  # long dead
    return names, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def holdings_before(store: Any, rank: int, size: int, backend: str) -> tuple[set[str], int, int]:
    """After a first group, so that whatever stays for the life of the process is there."""
    first = form(store, rank, size, "before", backend)
    meet(store, rank, size, "formed")  # Gloo's fails to form on a rank if another leaves too early
    first.shutdown()
    assert wait_for(lambda: holdings()[1] == len(threading.enumerate()))
    return holdings()


def meet(store: Any, rank: int, size: int, where: str) -> None:
    store.set(f"{where}/{rank}", "")
    store.wait([f"{where}/{other}" for other in range(size)], A_WHILE)


def wait_for(condition: Any) -> bool:
    deadline = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())


def used(group: NarrowgaugeGroup) -> None:
    """Everything that could hold a reference to the group: threads, callbacks, futures, a sub-group."""
    group.allreduce([torch.ones(1000)]).wait()
    works = [group.allreduce([torch.ones(10)]) for _ in range(5)]
    total = works[0].get_future().then(lambda future: future.value()[0].sum())
    works[-1].get_future().wait()
    assert total.wait().item() > 0
    group.barrier().wait()
    part = group.split_group([0, 1])
    assert part is not None
    part.allreduce([torch.ones(3)]).wait()


def drop(rank: int, size: int, store: Any, backend: str) -> str:
    """Rank 0 drops the group; the collector is off, so references alone must suffice."""
    gc.disable()
    before = holdings_before(store, rank, size, backend)
    group = form(store, rank, size, "dropped", backend)
    used(group)
    meet(store, rank, size, "used")
    if rank == 0:
        gone = weakref.ref(group)
        del group
        assert gone() is None, gc.get_referrers(gone())
        assert wait_for(lambda: holdings() == before), (before, holdings())
        store.wait(["said"], A_WHILE)
        return "dropped"
    started = time.monotonic()
    with pytest.raises((RuntimeError, collectives.CollectiveError)) as caught:
        group.allreduce([torch.ones(3)]).wait()
    assert time.monotonic() - started < SECONDS
    store.set("said", "")
    group.shutdown()
    return str(caught.value)


@pytest.mark.parametrize("backend", ["narrowgauge", "gloo"])
def test_peers_of_a_dropped_group_learn_of_it(backend: str) -> None:
    _, said = run(drop, 2, backend)
    if backend == "narrowgauge":
        assert "rank 0" in said
        assert "has left the group" in said


def drop_with_an_op_under_way(rank: int, size: int, store: Any, backend: str) -> list[float]:
    """Rank 0 keeps nothing but the tensor; its op must run to its end, and the group with it."""
    gc.disable()
    before = holdings_before(store, rank, size, backend)
    group = form(store, rank, size, "dropped", backend)
    tensor = torch.full((3,), rank + 1.0)
    if rank == 0:
        group.allreduce([tensor])
        gone = weakref.ref(group)
        del group
        assert gone() is not None
        store.set("dropped", "")
        assert wait_for(lambda: gone() is None)
        assert wait_for(lambda: holdings() == before), (before, holdings())
    else:
        store.wait(["dropped"], A_WHILE)
        time.sleep(0.3)
        group.allreduce([tensor]).wait()
        group.shutdown()
    return tensor.tolist()


@pytest.mark.parametrize("backend", ["narrowgauge", "gloo"])
def test_an_op_under_way_holds_its_group(backend: str) -> None:
    assert run(drop_with_an_op_under_way, 2, backend) == [[3.0] * 3] * 2


def drop_with_a_message_under_way(rank: int, size: int, store: Any) -> list[float]:
    """Rank 0 keeps the receive alone, and waits for it."""
    group = form(store, rank, size, "dropped")
    tensor = torch.full((3,), rank + 1.0)
    if rank == 0:
        work = group.recv([tensor], 1, 0)
        gone = weakref.ref(group)
        del group
        assert gone() is not None
        store.set("dropped", "")
        work.wait()
        assert wait_for(lambda: gone() is None)
    else:
        store.wait(["dropped"], A_WHILE)
        group.send([tensor], 0, 0).wait()
        with pytest.raises(collectives.GroupClosed, match="Connection closed by peer"):
            group.allreduce([tensor]).wait()
        group.shutdown()
    return tensor.tolist()


def test_a_message_under_way_holds_its_group() -> None:
    assert run(drop_with_a_message_under_way, 2)[0] == [2.0] * 3


def drop_in_a_cycle(rank: int, size: int, store: Any) -> None:
    """The garbage collector takes the group away on whichever thread it runs."""
    group = form(store, rank, size, "cycle")
    if rank == 0:
        holder: dict[str, Any] = {"group": group}
        holder["self"] = holder
        gone = weakref.ref(group)
        del group, holder
        assert gone() is not None
        gc.collect()
        assert gone() is None
        store.wait(["said"], A_WHILE)
    else:
        with pytest.raises(collectives.GroupClosed, match="rank 0"):
            group.allreduce([torch.ones(3)]).wait()
        store.set("said", "")
        group.shutdown()


def test_a_collected_group_is_left() -> None:
    run(drop_in_a_cycle, 2)
