"""`install()` in place of "cpu:gloo,cuda:nccl": ops of CPU tensors and of device tensors are ordered apart."""

from __future__ import annotations

import random
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

import collectives
from collectives.backend.by_device import ROUTED, GroupByDevice, parts_of
from collectives.backend.process_group import NarrowgaugeGroup
from tests.collectives.backend.test_staging import FakeTensor, fake_device, needs_fake_device
from tests.processes import run

PATIENCE = timedelta(seconds=100)
SIZE = 2
ON_DEVICE = torch.device("privateuseone", 0)  # the fake device before and after it has its name


@pytest.mark.parametrize(
    ("backends", "parts"),
    [
        ({"cpu": "gloo", "cuda": "nccl"}, (("cuda",),)),
        ({"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}, (("cuda",), ("xpu",))),
        ({"cuda": "nccl", "cpu": "gloo", "xpu": "nccl"}, (("cuda", "xpu"),)),
        ({"cpu": "gloo", "cuda": "gloo"}, ()),
        ({"cuda": "nccl"}, ()),
    ],
)
def test_parts_are_those_that_torch_makes(backends: dict[str, str], parts: tuple[tuple[str, ...], ...]) -> None:
    assert parts_of(backends) == parts


def test_every_collective_is_routed() -> None:
    """Whatever torch's own group has that takes tensors or meets others, but for what the store carries."""
    names = {name for name in dir(dist.ProcessGroup) if name in vars(NarrowgaugeGroup)}
    elsewhere = {
        name for name in names if name.startswith("_") and name not in ("_allgather_base", "_reduce_scatter_base")
    }
    elsewhere |= {"abort", "shutdown", "name", "options", "monitored_barrier", "set_timeout", "split_group"}
    elsewhere |= {name for name in names if "roup" in name or name.startswith(("get", "support", "eager", "perform"))}
    assert names - elsewhere <= {*ROUTED}
    assert {*ROUTED} <= vars(NarrowgaugeGroup).keys()  # some have their names since a later torch than this one


def join(store: Any, rank: int, size: int, has_device: bool = True) -> Any:
    if has_device:
        fake_device()
    collectives.install()
    dist.init_process_group("cpu:gloo,fake:nccl", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return dist.group.WORLD


def in_any_order(rank: int, size: int, store: Any) -> None:
    """The ranks start the two ops in opposite orders, which one engine would take for two different ops."""
    world = join(store, rank, size)
    assert isinstance(world, GroupByDevice)
    assert dist.distributed_c10d.get_backend_config() == "cpu:gloo,fake:nccl"
    part = world._get_backend(ON_DEVICE)
    assert world._get_backend(torch.device("cpu")) is world is not part
    for group in (world, dist.new_group(), world.split_group([0, 1], group_name="split")):
        plain, far = torch.full((3,), rank + 1.0), FakeTensor(torch.full((5,), rank + 1.0))
        ops = [lambda far=far, group=group: group.allreduce([far]), lambda p=plain, group=group: group.allreduce([p])]
        for work in [start() for start in (ops if rank else reversed(ops))]:
            work.wait()
        assert (plain.tolist(), far.host.tolist()) == ([3.0] * 3, [3.0] * 5)
        if rank:
            dist.barrier(group=group)
            group._get_backend(ON_DEVICE).barrier().wait()
        else:
            on_device = dist.BarrierOptions()
            on_device.device = ON_DEVICE
            under_way = group.barrier(on_device)
            dist.barrier(group=group)
            under_way.wait()
    numbers = part._get_sequence_number_for_group(), world._get_sequence_number_for_group()
    assert numbers == (2, 2), numbers
    dist.destroy_process_group()
    for closed, tensor in ((world, plain), (part, far)):
        with pytest.raises(collectives.GroupClosed):
            closed.allreduce([tensor])


@needs_fake_device
def test_ops_of_different_devices_have_no_order() -> None:
    run(in_any_order, SIZE)


def one_has_no_device(rank: int, size: int, store: Any) -> None:
    """Its tensors are in host memory, so they must meet those of the other rank's device in one engine."""
    world = join(store, rank, size, has_device=rank == 0)
    assert world._get_backend(ON_DEVICE if rank == 0 else torch.device("cpu")) is world
    given = torch.full((3,), rank + 1.0)
    dist.all_reduce(FakeTensor(given) if rank == 0 else given)
    assert given.tolist() == [3.0] * 3
    dist.destroy_process_group()


@needs_fake_device
def test_a_group_of_mixed_ranks_has_one_engine() -> None:
    run(one_has_no_device, SIZE)


def save_beside_training(rank: int, size: int, store: Any, folder: str) -> int:
    """Collectives of CPU tensors in the thread of `async_save`, beside those of a device in this one."""
    join(store, rank, size)
    chance = random.Random(rank)
    saving: Any = None
    steps = 0
    for save in range(4):
        state = {"weights": torch.full((1000,), float(save)), "rank": torch.full((3,), float(save))}
        saving = dcp.async_save(
            state, storage_writer=dcp.FileSystemWriter(Path(folder) / str(save), per_thread_copy_ahead=0)
        )
        ended = False
        while not ended:
            gradient = FakeTensor(torch.full((1000,), rank + 1.0))
            time.sleep(chance.random() * 0.02)
            dist.all_reduce(gradient)
            assert gradient.host.tolist() == [3.0] * 1000
            done = FakeTensor(torch.tensor([float(saving.done())]))
            dist.all_reduce(done)
            ended = done.host.item() == size
            steps += 1
        saving.result()
    loaded = {"weights": torch.zeros(1000), "rank": torch.zeros(3)}
    dcp.load(loaded, checkpoint_id=Path(folder) / "3")
    assert loaded["weights"].tolist() == [3.0] * 1000
    dist.destroy_process_group()
    return steps


@needs_fake_device
def test_async_save_runs_beside_collectives_of_a_device() -> None:
    with tempfile.TemporaryDirectory() as folder:
        steps = run(save_beside_training, SIZE, folder)
    assert steps[0] == steps[1] >= 4
