"""Beginnings and ends: what is left after destroy, and what survivors are told when something goes wrong."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import collectives
from tests.processes import Died, run

A_WHILE = timedelta(seconds=80)  # for another rank to come as far


def join(store: Any, rank: int, size: int, name: str = "", timeout_s: float = 120.0) -> None:
    dist.init_process_group(
        "narrowgauge",
        store=dist.PrefixStore(name, store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )


def holdings() -> tuple[set[str], int, set[str]]:
    """Threads by name (Python's) and number (the kernel's), number of open files, names of shared-memory segments."""
    segments = {entry.name for entry in Path("/dev/shm").iterdir() if "narrowgauge" in entry.name}
    threads = {thread.name for thread in threading.enumerate()}
    return threads | set(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), segments


def settled(wanted: tuple[set[str], int, set[str]]) -> tuple[set[str], int, set[str]]:
    """The holdings, once they are as wanted; the kernel takes a moment to bury a thread that has been joined."""
    deadline = time.monotonic() + 60
    while (has := holdings()) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return has


def come_and_go(rank: int, size: int, store: Any, backend: str) -> list[str]:
    collectives.configure(backend=backend)
    problems = []
    for cycle in range(11):
        join(store, rank, size, f"{cycle}/")
        pairs = dist.new_group([0, 1])
        work = dist.all_reduce(torch.ones(1000), async_op=True)
        dist.all_reduce(torch.ones(10), group=pairs)
        if rank == 0:
            dist.send(torch.ones(3), 1)
        elif rank == 1:
            dist.recv(torch.ones(3), 0)
        work.wait()
        group = dist.group.WORLD
        dist.destroy_process_group()
        with pytest.raises(collectives.GroupClosed):
            group.allreduce([torch.ones(3)])  # type: ignore[union-attr]
        del pairs, work, group
        if cycle == 0:
            time.sleep(0.5)
            before = holdings()
        elif (after := settled(before)) != before:
            problems.append(f"rank {rank}, cycle {cycle}: had {before}, has {after}")
    return problems


@pytest.mark.parametrize("backend", ["narrowgauge", "gloo"])
def test_destroy_leaves_nothing_behind(backend: str) -> None:
    assert run(come_and_go, 3, backend) == [[]] * 3


def destroy_in_a_handler(rank: int, size: int, store: Any, handler_catches: bool) -> tuple[list[str], set[str]]:
    """Rank 0 destroys the group in a signal handler, which interrupts an op that waits for rank 1.

    Returns:
        What was said of it, and the threads that are left once the group has been destroyed again.
    """
    join(store, rank, size, "first")
    said: list[str] = []

    def handle(*_: object) -> None:
        try:
            dist.destroy_process_group()
        except collectives.GroupClosed as error:
            said.append(str(error))
            if not handler_catches:
                raise

    if rank == 0:
        signal.signal(signal.SIGALRM, handle)
        behind: list[Any] = []  # waits in line behind the op that is interrupted
        add = threading.Timer(0.5, lambda: behind.append(dist.all_reduce(torch.ones(3), async_op=True)))
        add.start()
        signal.setitimer(signal.ITIMER_REAL, 2)
        with pytest.raises(collectives.GroupClosed) as caught:
            dist.all_reduce(torch.ones(3))
        said.append(str(caught.value))
        add.join()
        with pytest.raises(collectives.GroupClosed):
            behind[0].wait()
        store.set("left", "")
    else:
        store.wait(["left"], A_WHILE)
        with pytest.raises(collectives.GroupClosed) as caught:
            dist.all_reduce(torch.ones(3))
        said.append(str(caught.value))
    dist.destroy_process_group()
    left = threads_of_groups()
    join(store, rank, size, "second")
    dist.all_reduce(torch.ones(3))
    dist.destroy_process_group()
    return said, left


@pytest.mark.parametrize("handler_catches", [False, True])
def test_destroy_in_a_signal_handler_ends_the_op_beneath_it(handler_catches: bool) -> None:
    (said, left), (of_peer, left_of_peer) = run(destroy_in_a_handler, 2, handler_catches, deadline_s=100)
    assert "call destroy_process_group again" in said[0]
    assert "rank 0" in of_peer[0]
    assert (left, left_of_peer) == (set(), set())


def threads_of_groups() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "narrowgauge" in thread.name}


def destroy_in_a_callback(rank: int, size: int, store: Any) -> tuple[list[str], set[str]]:
    """What `destroy_process_group` raised in a future's callback, and the threads that it left."""
    join(store, rank, size)
    raised = []

    def leave(_: object) -> None:
        try:
            dist.destroy_process_group()
        except BaseException as error:
            raised.append(repr(error))

    work: Any = dist.all_reduce(torch.ones(3), async_op=True)
    work.get_future().then(leave).wait()
    deadline = time.monotonic() + 60
    while (
        left := {thread.name for thread in threading.enumerate() if "narrowgauge" in thread.name}
    ) and time.monotonic() < deadline:
        time.sleep(0.01)
    return raised, left


@pytest.mark.parametrize("backend", ["narrowgauge", "gloo"])
def test_destroy_in_a_futures_callback(backend: str) -> None:
    for raised, left in run(destroy_in_a_callback, 2, environment={"NARROWGAUGE_BACKEND": backend}):
        assert (raised, left) == ([], set())


def reduce_until(tensor: torch.Tensor, deadline: float) -> None:
    while time.monotonic() < deadline:
        dist.all_reduce(tensor, dist.ReduceOp.AVG)


def die_in_the_middle(rank: int, size: int, store: Any, victim: int) -> tuple[float, str, int | None]:
    join(store, rank, size)
    tensor = torch.ones(2_000_000)
    dist.all_reduce(tensor)
    started = time.monotonic()
    if rank == victim:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
    with pytest.raises(collectives.PeerLost) as caught:
        reduce_until(tensor, started + 60)
    took_s = time.monotonic() - started
    with pytest.raises(collectives.CollectiveError, match="broke"):
        dist.barrier()
    dist.destroy_process_group()
    return took_s, str(caught.value), caught.value.culprit


def test_a_dead_rank_is_named_by_all_survivors() -> None:
    results = run(die_in_the_middle, 4, 2, may_die={2})
    assert results[2] == Died(-signal.SIGKILL)
    for _, message, culprit in (results[0], results[1], results[3]):
        assert "rank 2" in message
        assert culprit == 2


@pytest.mark.measured
def test_a_dead_rank_is_noticed_within_seconds() -> None:
    results = run(die_in_the_middle, 4, 2, may_die={2})
    assert max(results[rank][0] for rank in (0, 1, 3)) < 5


def mismatched(rank: int, size: int, store: Any) -> str:
    join(store, rank, size)
    with pytest.raises(collectives.CollectiveError) as caught:
        dist.all_reduce(torch.ones(10 if rank else 11))
    dist.destroy_process_group()
    return type(caught.value).__name__


def test_mismatched_ops_are_told() -> None:
    assert "OpMismatch" in run(mismatched, 2)


def late(rank: int, size: int, store: Any) -> list[str]:
    """Rank 1 comes too late: for the wait, for the op, for the group."""
    said = []
    for name, group_timeout_s, op_timeout_s in (("op", 120.0, 0.5), ("group", 0.5, None)):
        join(store, rank, size, name, group_timeout_s)
        options = dist.AllreduceOptions()
        options.asyncOp = False
        if op_timeout_s is not None:
            options.timeout = timedelta(seconds=op_timeout_s)
        if rank == 0:
            started = time.monotonic()
            with pytest.raises(collectives.OpTimeout) as caught:
                dist.group.WORLD.allreduce([torch.ones(3)], options)  # type: ignore[union-attr]
            said.append(str(caught.value))
            assert 0.4 < time.monotonic() - started < 60
            store.set(f"said {name}", "")
        else:
            store.wait([f"said {name}"], A_WHILE)
        dist.destroy_process_group()
    join(store, rank, size, "wait")
    if rank == 1:
        store.wait(["said wait"], A_WHILE)
    tensor = torch.ones(3)
    work = dist.all_reduce(tensor, async_op=True)
    if rank == 0:
        with pytest.raises(collectives.OpTimeout, match=r"waited 0\.2 s") as caught:
            work.wait(timedelta(seconds=0.2))
        said.append(str(caught.value))
        store.set("said wait", "")
    work.wait()
    assert tensor.tolist() == [2.0] * 3
    dist.destroy_process_group()
    return said


def unfinished(rank: int, size: int, store: Any) -> str:
    """Rank 0 destroys the group while its op still waits for rank 1."""
    join(store, rank, size)
    if rank == 0:
        work = dist.all_reduce(torch.ones(3), async_op=True)
        time.sleep(0.2)
        dist.destroy_process_group()
        store.set("closed", "")
        with pytest.raises(collectives.GroupClosed) as caught:
            work.wait()
        return str(caught.value)
    store.wait(["closed"], A_WHILE)
    with pytest.raises(collectives.CollectiveError) as lost:
        dist.all_reduce(torch.ones(3))
    dist.destroy_process_group()
    return str(lost.value)


def test_destroy_ends_unfinished_ops_on_all_ranks() -> None:
    for said in run(unfinished, 2):
        assert "rank 0" in said


def leave_without_a_word(rank: int, size: int, store: Any) -> None:
    join(store, rank, size)
    dist.all_reduce(torch.ones(3))


def test_a_process_may_end_without_destroy() -> None:
    run(leave_without_a_word, 3)


def test_timeouts_of_op_group_and_wait() -> None:
    said, _ = run(late, 2)
    assert len(said) == 3
    assert all("rank 1" in words for words in said[:2]), said


def fail_in_backward(rank: int, size: int, store: Any) -> str:
    join(store, rank, size)
    model = DistributedDataParallel(torch.nn.Linear(100, 100))
    model(torch.ones(2, 100)).sum().backward()
    loss = model(torch.ones(2, 100)).sum()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError) as caught:
        loss.backward()
    dist.destroy_process_group()
    return str(caught.value)


def test_a_failure_reaches_the_backward_pass_of_ddp() -> None:
    message, _, other = run(fail_in_backward, 3, may_die={1})
    for text in (message, other):
        assert "PeerLost" in text
        assert "rank 1" in text
        assert "\n" not in text, "the last line is not our message's"


def ends(rank: int, size: int, store: Any) -> str:
    """Rank 1 ends without destroy, and without atexit, as processes of multiprocessing do."""
    join(store, rank, size)
    if rank == 1:
        dist.send(torch.ones(20_000), 0)
        return ""
    dist.recv(torch.zeros(20_000), 1)
    with pytest.raises(collectives.CollectiveError) as caught:
        dist.recv(torch.zeros(1), 1)
    dist.destroy_process_group()
    return str(caught.value)


def test_a_process_of_multiprocessing_that_returns_has_not_died() -> None:
    assert "rank 1" in (said := run(ends, 2)[0])
    assert "has left the group" in said
