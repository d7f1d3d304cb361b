"""send, recv and what torch builds on them: the same as over Gloo, and better when something goes wrong."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from datetime import timedelta
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import collectives
from collectives.backend import messages
from collectives.backend.messages import MessageWork
from tests.paths import REPOSITORY
from tests.processes import Died, run

SIZES = (0, 1, 2, 100, 16_000, 16_384, 16_385, 70_000, 2_500_000)
WEIGHTS = (4, 4, 4, 8, 8, 4, 4, 4, 1)


def join(store: Any, rank: int, size: int, timeout_s: float = 120.0) -> None:
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size, timeout=timeout)


def content(source: int, tag: int, number: int, count: int) -> Tensor:
    """What message `number` from `source` with `tag` holds: no other message has the same."""
    return torch.arange(count, dtype=torch.float32) * 0.5 + (source * 1000 + tag * 100 + number)


def traffic(draw: random.Random, size: int, tags: range) -> list[tuple[int, int, int, int]]:
    """Source, target, tag and number of elements of some messages; the same on all ranks."""
    messages = []
    for _ in range(draw.randint(3, 8)):
        source, target = draw.sample(range(size), 2)
        messages.append((source, target, draw.choice(tags), draw.choices(SIZES, WEIGHTS)[0]))
    return messages


def exchange(rank: int, group: Any, messages: list[tuple[int, int, int, int]], draw: random.Random) -> list[Tensor]:
    """This rank's part of the messages, started in any order that keeps that of each pair and tag; what it received."""
    mine = [(number, each) for number, each in enumerate(messages) if rank in each[:2]]
    lines: dict[tuple[int, int, int], list[Any]] = {}
    for number, (source, target, tag, count) in mine:
        lines.setdefault((source, target, tag), []).append((number, count))
    works, received = [], {}
    while lines:
        source, target, tag = key = draw.choice(sorted(lines))
        number, count = lines[key].pop(0)
        if not lines[key]:
            del lines[key]
        if source == rank:
            works.append(dist.isend(content(source, tag, number, count), target, group, tag))
        else:
            received[number] = torch.full((count,), -1.0)
            works.append(dist.irecv(received[number], source, group, tag))
    draw.shuffle(works)
    for work in works:
        assert work is not None
        if isinstance(work, MessageWork) and draw.random() < 0.3:  # Gloo's never says so before wait
            while not work.is_completed():
                time.sleep(0)
        work.wait()
    return [received[number] for number in sorted(received)]


def from_any(rank: int, size: int, group: Any, seed: int) -> dict[tuple[int, float], int]:
    """Everyone sends some messages of one size to everyone; received from any source, counted by source and value."""
    draw = random.Random(seed)
    counts = {(source, target): draw.randint(0, 3) for source in range(size) for target in range(size)}
    length = draw.choice([1, 500, 40_000])
    sends = [
        dist.isend(torch.full((length,), float(number)), target, group, 77)
        for target in range(size)
        if target != rank
        for number in range(counts[rank, target])
    ]
    found: dict[tuple[int, float], int] = {}
    for _ in range(sum(counts[source, rank] for source in range(size) if source != rank)):
        value = torch.full((length,), -1.0)
        source = dist.recv(value, None, group, 77)
        assert (value == value[0]).all()
        found[source, value[0].item()] = found.get((source, value[0].item()), 0) + 1
    for work in sends:
        work.wait()  # type: ignore[union-attr]
    return found


def random_traffic(rank: int, size: int, store: Any, seed: int, seconds: float) -> int:
    """Both backends carry the same messages, from three threads, while a fourth runs collectives. Rounds done."""
    join(store, rank, size)
    groups = [dist.group.WORLD, dist.new_group(backend="gloo")]
    halt = [False]

    def reduce_until() -> None:
        # All ranks stop after the same all-reduce: the one in which somebody wants to.
        while True:
            tensor = torch.ones(30_000)
            tensor[0] = float(halt[0])
            dist.all_reduce(tensor, group=groups[0])
            assert tensor[1] == size
            if tensor[0]:
                return

    def talk(thread: int) -> None:
        tags = range(10 * thread, 10 * thread + 3)
        for number in range(rounds):
            shared, own = random.Random(f"{seed} {thread} {number}"), random.Random(f"{rank} {thread} {number}")
            messages = traffic(shared, size, tags)
            ours, theirs = (exchange(rank, group, messages, own) for group in groups)
            for got, wanted in zip(ours, theirs, strict=True):
                assert torch.equal(got, wanted), (seed, thread, number)

    problems: list[BaseException] = []

    def guarded(call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except BaseException as problem:
            problems.append(problem)

    rounds, done, deadline = 2, 0, time.monotonic() + seconds
    reducer = threading.Thread(target=guarded, args=(reduce_until,))
    reducer.start()
    while True:
        threads = [threading.Thread(target=guarded, args=(talk, number)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]
        assert from_any(rank, size, groups[0], seed) == from_any(rank, size, groups[1], seed)
        done, seed = done + rounds, seed + 1
        go_on = torch.tensor([float(rank == 0 and time.monotonic() < deadline)])
        dist.broadcast(go_on, 0, group=groups[1])
        if not go_on:
            break
    halt[0] = True
    reducer.join()
    if problems:
        raise problems[0]
    dist.destroy_process_group()
    return done


def test_random_messages_as_over_gloo() -> None:
    assert min(run(random_traffic, 3, 1, 0.0)) >= 2


@pytest.mark.slow
def test_random_messages_as_over_gloo_for_longer() -> None:
    seed = int(os.environ.get("SEED", "0")) or random.randrange(10**6)
    print("seed", seed)
    assert min(run(random_traffic, 4, seed, 20.0)) > 3


def nobody_listens(rank: int, size: int, store: Any) -> list[str]:
    """Ports on which this process listens, after init, messages and all-reduces, sparse ones too."""

    def listening() -> int:
        return sum(each.status == psutil.CONN_LISTEN for each in psutil.Process().net_connections("tcp"))

    join(store, rank, size)
    dist.all_reduce(torch.ones(3))
    dist.recv(torch.ones(3), 0) if rank else [dist.send(torch.ones(3), peer) for peer in range(1, size)]
    tensor = torch.sparse_coo_tensor(torch.tensor([[rank]]), torch.ones(1), (size,))
    dist.all_reduce(tensor)
    problems = [f"{count} listening sockets"] if (count := listening()) else []
    dist.destroy_process_group()
    return problems


def test_nobody_listens_once_the_group_has_formed() -> None:
    assert run(nobody_listens, 3) == [[]] * 3


class Stage(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        torch.manual_seed(index)
        self.layer = nn.Linear(16, 16)

    def forward(self, value: Tensor) -> Tensor:
        return torch.tanh(self.layer(value))


def pipelined(rank: int, size: int, store: Any, schedule_name: str) -> list[list[Any]]:
    """Gradients of a pipeline's stage on both backends; the same numbers are wanted."""
    from torch.distributed import pipelining

    join(store, rank, size)
    both = []
    for group in (dist.group.WORLD, dist.new_group(backend="gloo")):
        module = Stage(rank)
        stage = pipelining.PipelineStage(module, rank, size, torch.device("cpu"), group=group)
        schedule = getattr(pipelining, schedule_name)(stage, 4, loss_fn=nn.functional.mse_loss)
        value = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
        losses: list[Tensor] = []
        for _ in range(2):
            if rank == 0:
                schedule.step(value)
            elif rank == size - 1:
                schedule.step(target=value, losses=losses)
            else:
                schedule.step()
        results = [*(each.grad for each in module.parameters()), *losses[-1:]]
        both.append([each.detach().numpy() for each in results])  # type: ignore[union-attr]
    dist.destroy_process_group()
    return both


@pytest.mark.parametrize("schedule", ["ScheduleGPipe", "Schedule1F1B"])
def test_torchs_pipelines(schedule: str) -> None:
    for ours, gloo in run(pipelined, 3, schedule):
        assert len(ours) == len(gloo) > 0
        for got, wanted in zip(ours, gloo, strict=True):
            np.testing.assert_array_equal(got, wanted)


def works(rank: int, size: int, store: Any) -> None:
    """What the handle of a message can say; strided and inference tensors; futures."""
    join(store, rank, size)
    if rank == 0:
        work = dist.isend(torch.arange(6.0).view(2, 3).t(), 1)
        assert work is not None
        work.wait()
        assert work.is_completed()
        assert work.is_success()
        assert work.exception() is None
        with pytest.raises(RuntimeError, match="only a finished receive has a source rank"):
            work.source_rank()
        store.wait(["asked"], timedelta(seconds=80))
        for tag in (1, 2, 3, 4):
            dist.send(torch.full((4,), float(tag)), 1, tag=tag)
        dist.recv(torch.zeros(1), 1)
    else:
        received = torch.zeros(6, 2)[::2]
        assert dist.recv(received, 0) == 0
        assert torch.equal(received, torch.arange(6.0).view(2, 3).t())
        work = dist.irecv(received[:2], 0, tag=1)
        assert work is not None
        assert not work.is_completed()
        with pytest.raises(RuntimeError, match=r"receive of 16 bytes of float32 from rank 0 .*result\(\) before it"):
            work.result()
        with pytest.raises(collectives.OpTimeout, match=r"has waited 0\.05 s; the message is still under way"):
            work.wait(timedelta(seconds=0.05))
        doubled = work.get_future().then(lambda future: future.value()[0].clone() * 2)
        store.set("asked", "")
        assert doubled.wait().tolist() == [[2.0, 2.0]] * 2
        assert work.get_future() is work.get_future()
        assert work.result()[0].tolist() == [[1.0, 1.0]] * 2
        assert work.source_rank() == 0
        late = dist.irecv(received[:2], 0, tag=2)
        assert late is not None
        late.wait()
        assert late.get_future().wait()[0].tolist() == [[2.0, 2.0]] * 2
        with torch.inference_mode():
            inferred = torch.zeros(4, 2)[:, 0]
            dist.recv(inferred, 0, tag=3)
            assert inferred.tolist() == [3.0] * 4
            again = dist.irecv(inferred, 0, tag=4)
            assert again is not None
            assert again.get_future().wait()[0].tolist() == [4.0] * 4
        dist.send(torch.zeros(1), 0)
    dist.destroy_process_group()


def test_what_the_handle_of_a_message_says() -> None:
    run(works, 2)


def die_in_a_message(rank: int, size: int, store: Any) -> tuple[float, str, int | None]:
    """Rank 1 is killed while it sends 400 MB to rank 0; rank 2 waits for rank 0."""
    join(store, rank, size)
    dist.barrier()
    tensor = torch.ones(100_000_000 if rank < 2 else 1)
    if rank == 1:
        work = dist.isend(tensor, 0)
        while work._request.moved < 10_000_000:  # type: ignore[union-attr]
            time.sleep(0.001)
        store.set("killed at", str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(collectives.PeerLost) as caught:
        dist.recv(tensor, 1 if rank == 0 else 0)
    raised_s = time.time() - float(store.get("killed at"))
    with pytest.raises(collectives.CollectiveError, match="broke"):
        dist.barrier()
    dist.destroy_process_group()
    return raised_s, str(caught.value), caught.value.culprit


def test_a_rank_killed_in_the_middle_of_a_message_is_named_at_once() -> None:
    results = run(die_in_a_message, 3, may_die={1})
    assert results[1] == Died(-signal.SIGKILL)
    for raised_s, message, culprit in (results[0], results[2]):
        assert raised_s < 30  # not the timeout of two minutes
        assert culprit == 1
        assert "rank 1" in message
        assert "died" in message
    assert "of 400000000 bytes have arrived" in results[0][1]


def interrupted(rank: int, size: int, store: Any) -> str:
    join(store, rank, size)
    if rank == 1:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            dist.recv(torch.ones(3), 0)
        said = ""
    else:
        with pytest.raises(collectives.CollectiveError) as caught:
            dist.recv(torch.ones(3), 1)
        said = str(caught.value)
    dist.destroy_process_group()
    return said


def test_control_c_ends_a_receive_and_peers_learn_of_it() -> None:
    said, _ = run(interrupted, 2)
    assert "rank 1" in said
    assert "KeyboardInterrupt" in said


def mistaken(rank: int, size: int, store: Any) -> None:
    join(store, rank, size)
    group: Any = dist.group.WORLD
    for call, words in (
        (lambda: group.send([torch.ones(1)] * 2, 1 - rank, 0), "got 2 tensors; wanted one"),
        (lambda: group.send([torch.ones(1)], rank, 0), "with itself"),
        (lambda: dist.isend(torch.ones(1), 1 - rank, tag=-1), "tag is -1"),
        (lambda: dist.isend(torch.ones(1, device="meta"), 1 - rank), "meta"),
        (lambda: dist.irecv(torch.ones(2, 2).to_sparse(), 1 - rank), "layout"),
    ):
        with pytest.raises(collectives.UsageError, match=words):
            call()
    dist.barrier()
    dist.destroy_process_group()
    for call in (lambda: group.send([torch.ones(1)], 1 - rank, 0), lambda: group.recv_anysource([torch.ones(1)], 0)):
        with pytest.raises(collectives.GroupClosed, match="was destroyed"):
            call()


def test_mistakes_are_told_at_the_call_and_leave_the_group_whole() -> None:
    run(mistaken, 2)


def forked(rank: int, size: int, store: Any) -> int:
    """A forked child takes no messages, and its parent's go on."""
    join(store, rank, size)
    pending = dist.irecv(torch.zeros(1), 1 - rank, tag=5)
    time.sleep(0.01)  # the progress thread leads
    child = os.fork()
    if child == 0:
        try:
            dist.send(torch.ones(1), 1 - rank)
        except collectives.GroupClosed:
            os._exit(7)
        finally:
            os._exit(8)
    _, status = os.waitpid(child, 0)
    dist.send(torch.ones(1), 1 - rank, tag=5)
    assert pending is not None
    pending.wait()
    dist.barrier()
    dist.destroy_process_group()
    return os.waitstatus_to_exitcode(status)


def test_a_forked_child_is_no_member() -> None:
    assert run(forked, 2) == [7, 7]


def copied_by_two(rank: int, size: int, store: Any) -> tuple[int, list[float]]:
    """A future's callback has begun to copy a message to its tensor when `wait` is called, and is held up.

    Returns:
        How often it was copied, and what is in the tensor after the caller wrote sevens to it.
    """
    join(store, rank, size)
    received = torch.zeros(8)[::2]
    if rank == 1:
        dist.send(torch.ones(4), 0)
    else:
        begun, go_on, copies = threading.Event(), threading.Event(), []
        copy = messages.from_host

        def slowly(host: Tensor, tensor: Tensor) -> None:
            copies.append(threading.current_thread().name)
            if len(copies) == 1:
                begun.set()
                go_on.wait()
            copy(host, tensor)

        messages.from_host = slowly
        work: Any = dist.irecv(received, 1)
        future = work.get_future()
        begun.wait()
        threading.Timer(0.5, go_on.set).start()
        work.wait()
        received.fill_(7)
        go_on.set()
        future.wait()
        counted = len(copies)
    dist.destroy_process_group()
    return (0, []) if rank else (counted, received.tolist())


def test_a_message_is_copied_to_its_tensor_once() -> None:
    assert run(copied_by_two, 2)[0] == (1, [7.0] * 4)


def kept_alive(rank: int, size: int, store: Any) -> int:
    """How many works of finished messages live on, with their tensors, while Python's collector is off."""
    join(store, rank, size)
    gc.disable()
    works = []
    for _ in range(10):
        tensor = torch.ones(1000)
        work: Any = dist.irecv(tensor, 0) if rank == 1 else None
        future = work.get_future() if rank == 1 else None
        dist.barrier()  # the future is taken before the message comes
        work = work or dist.isend(tensor, 1)
        work.wait()
        if future is not None:
            future.wait()
        works.append(weakref.ref(work))
        del work, future
    deadline = time.monotonic() + 20
    while any(work() is not None for work in works) and time.monotonic() < deadline:
        time.sleep(0.01)  # a helper drops the last reference a moment later
    left = sum(work() is not None for work in works)
    dist.destroy_process_group()
    return left


def test_a_finished_message_with_a_future_is_freed_at_once() -> None:
    assert run(kept_alive, 2) == [0, 0]


def counted(rank: int, size: int, store: Any) -> tuple[float, dict[str, float]]:
    join(store, rank, size)
    before = collectives.stats()["wait_s"]
    if rank == 0:
        dist.recv(torch.ones(1), 1)
    else:
        time.sleep(0.5)
        dist.send(torch.ones(1), 0)
    after = collectives.stats()
    dist.barrier()
    dist.destroy_process_group()
    (waits,) = after["waited_for"].values()
    return after["wait_s"] - before, waits


def test_waiting_for_messages_is_counted_and_attributed() -> None:
    (seconds, waits), _ = run(counted, 2)
    assert seconds > 0.4
    assert sum(waits.values()) > 0.4


def test_on_gloo_the_engine_is_not_loaded() -> None:
    script = (
        "import sys, torch, torch.distributed as dist, collectives\n"
        "collectives.configure(backend='gloo')\n"
        "dist.init_process_group('narrowgauge', store=dist.HashStore(), rank=0, world_size=1)\n"
        "print([name for name in ('numba', 'collectives.engine.messages.messenger') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_benchmark_runs() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "tests.benchmarks.messages", "--rounds", "1", "--json", "--seconds", "0.01"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [row["num_bytes"] for row in rows] == [8, 4096, 1_000_000, 25_000_000]
    assert np.all([row["narrowgauge"] > 0 and row["gloo"] > 0 for row in rows])
