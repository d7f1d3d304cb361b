"""What torch's profiler shows of our ops."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import collectives
from collectives.backend import profiled
from tests.processes import run

TRIPLE = (3,)


def every_op(rank: int) -> None:
    """Each collective and message once, synchronously or not, in an order that `WANTED` repeats."""
    own, other = torch.ones(3), 1 - rank
    dist.all_reduce(own)
    work: Any = dist.all_reduce(torch.ones(3), async_op=True)
    work.wait()
    dist.broadcast(own, 0)
    dist.reduce(own, 0)
    dist.all_gather([torch.ones(3), torch.ones(3)], own)
    dist.all_gather_into_tensor(torch.ones(6), own)
    dist.reduce_scatter(torch.ones(3), [torch.ones(3), torch.ones(3)])
    dist.reduce_scatter_tensor(torch.ones(3), torch.ones(6))
    dist.all_to_all_single(torch.ones(6), torch.ones(6))
    dist.gather(own, [torch.ones(3), torch.ones(3)] if rank == 0 else None)
    dist.scatter(own, [torch.ones(3), torch.ones(3)] if rank == 0 else None)
    dist.barrier()
    if rank == 0:
        dist.send(own, other)
        dist.recv(own)
    else:
        dist.recv(own)
        dist.send(own, other)


WANTED = [
    *("all_reduce", "all_reduce", "broadcast", "reduce", "all_gather", "all_gather", "reduce_scatter"),
    *("reduce_scatter", "all_to_all", "gather", "scatter", "barrier"),
]
SHAPES = {
    "barrier": [[]],
    "all_to_all": [[[6]]],
    "reduce_scatter": [[[3], [3]], [[6]]],
    "scatter": [[[3], [3]], []],  # on the root, on the others
}


def events_of(recorded: profile, backend: str) -> list[Any]:
    found = [event for event in recorded.events() or [] if event.name.startswith(f"{backend}:")]
    return sorted((each for each in found if "::" not in each.name), key=lambda each: each.time_range.start)


def check_events(rank: int, backend: str) -> None:
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        every_op(rank)
    events = events_of(recorded, backend)
    messages = ["send", "recvAnySource"] if rank == 0 else ["recvAnySource", "send"]
    assert [event.name for event in events] == [f"{backend}:{op}" for op in WANTED + messages]
    for event in events:
        assert event.is_async, event.name
        assert event.thread == events[0].thread  # the caller's
        op = event.name.partition(":")[2]
        assert event.input_shapes in SHAPES.get(op, [[[3]]]), f"{op}: {event.input_shapes}"
    assert [each.name for each in events_of(recorded, "gloo")] == (
        [e.name for e in events] if backend == "gloo" else []
    )


def an_op_that_takes_long(rank: int) -> None:
    """An event lasts until its op is over, not until the call returns, and no longer."""
    if rank == 1:
        dist.barrier()
        threading.Event().wait(0.5)
        dist.all_reduce(torch.ones(3))
        return
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        dist.barrier()
        work: Any = dist.all_reduce(torch.ones(3), async_op=True)
        torch.ones(3).sin_()
        work.wait()
        threading.Event().wait(0.5)
    _, event = events_of(recorded, "narrowgauge")
    (beside,) = [each for each in recorded.events() or [] if each.name == "aten::sin_"]
    whole = max(each.time_range.end for each in recorded.events() or [])
    assert event.time_range.start < beside.time_range.start
    assert event.time_range.elapsed_us() > 400_000  # the other rank came half a second later
    assert whole == event.time_range.end


def details(rank: int, folder: Path) -> None:
    """What a trace says of a call, by the names that torch's own traces have."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        dist.all_gather_into_tensor(torch.ones(6, dtype=torch.int16), torch.ones(3, dtype=torch.int16))
    recorded.export_chrome_trace(str(folder / f"{rank}.json"))
    trace = json.loads((folder / f"{rank}.json").read_text())["traceEvents"]
    (call,) = [each["args"] for each in trace if each.get("name") == "narrowgauge::all_gather"]
    assert (call["Collective name"], call["dtype"]) == ("all_gather", "int16")
    assert (call["In msg nelems"], call["Out msg nelems"]) == (3, 6)
    assert (call["Group size"], call["Rank"], call["Process Group Description"]) == (2, rank, "default_pg")
    (op,) = [each for each in trace if each.get("name") == "narrowgauge:all_gather"]
    assert op["args"]["Input Dims"] == [[3]]


def ddp(rank: int) -> None:
    model = DistributedDataParallel(torch.nn.Linear(10, 10))
    model(torch.ones(3, 10)).sum().backward()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        model(torch.ones(3, 10)).sum().backward()
    (gradients,) = [each for each in events_of(recorded, "narrowgauge") if each.name == "narrowgauge:all_reduce"]
    assert (gradients.input_shapes, gradients.is_async) == ([[110]], True)


def failing(rank: int) -> None:
    """The event of an op that fails ends, too, and the profiler stops in peace."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded, pytest.raises(collectives.CollectiveError):
        dist.all_reduce(torch.ones(3 + rank))
    (event,) = events_of(recorded, "narrowgauge")
    assert event.is_async


def under_our_name(rank: int, size: int, store: Any, folder: Path) -> None:
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    check_events(rank, "narrowgauge")
    an_op_that_takes_long(rank)
    details(rank, folder)
    ddp(rank)
    assert not profiled.is_active()
    failing(rank)
    dist.destroy_process_group()


def test_events_of_all_ops(tmp_path: Path) -> None:
    run(under_our_name, 2, tmp_path)


def in_gloos_place(rank: int, size: int, store: Any) -> None:
    collectives.install()
    dist.init_process_group("gloo", store=dist.PrefixStore("ours", store), rank=rank, world_size=size)
    assert dist.group.WORLD.name() == "narrowgauge"  # type: ignore[union-attr]
    check_events(rank, "gloo")
    half = dist.new_group([0, 1])
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        dist.all_reduce(torch.ones(3), group=half)
    assert len(events_of(recorded, "gloo")) == 1
    dist.destroy_process_group()


def test_events_have_the_name_of_the_backend_that_was_replaced() -> None:
    run(in_gloos_place, 2)


def on_gloo(rank: int, size: int, store: Any) -> None:
    collectives.configure(backend="gloo")
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        dist.all_reduce(torch.ones(3))
    assert len(events_of(recorded, "gloo")) == 1
    assert not events_of(recorded, "narrowgauge")
    dist.destroy_process_group()


def test_a_group_on_gloo_leaves_gloos_events_once() -> None:
    run(on_gloo, 2)
