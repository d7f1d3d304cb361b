"""Tensors that live elsewhere: a fake device whose memory the engine cannot touch, on groups of one and of several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from collectives.errors import UsageError
from collectives.staging import as_bytes, from_host, is_plain, room_for, to_host
from tests.processes import run


class FakeTensor(Tensor):
    """Says that it lives on device "fake"; only copies from and to the CPU are allowed, and counted."""

    host: Tensor
    copies: list[str]

    @staticmethod
    def __new__(cls, host: Tensor) -> FakeTensor:
        made: FakeTensor = Tensor._make_wrapper_subclass(cls, host.shape, dtype=host.dtype, device="fake:0")  # type: ignore[attr-defined]
        made.host, made.copies = host, []
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        assert function is torch.ops.aten.copy_.default, f"{function} on the fake device"
        to, source = arguments[:2]
        for tensor, direction in ((to, "in"), (source, "out")):
            if isinstance(tensor, FakeTensor):
                tensor.copies.append(direction)
        to_memory, from_memory = (each.host if isinstance(each, FakeTensor) else each for each in (to, source))
        to_memory.copy_(from_memory)
        return to


def fake_device() -> None:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("fake")


def on_a_fake_device(rank: int, size: int, store: Any) -> list[str]:
    fake_device()
    device = torch.device("fake", 0)
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size, device_id=device)
    assert [device.type for device in dist.group.WORLD._device_types] == ["cpu", "fake"]  # type: ignore[union-attr]
    tensor = FakeTensor(torch.full((1000,), rank + 1.0))
    dist.all_reduce(tensor)
    assert tensor.host.tolist() == [3.0] * 1000
    dist.all_reduce(tensor, async_op=True).wait()  # type: ignore[union-attr]
    assert tensor.host.tolist() == [6.0] * 1000
    copies = list(tensor.copies)
    outputs = [FakeTensor(torch.zeros(3)) for _ in range(size)]
    dist.all_gather(outputs, FakeTensor(torch.full((3,), float(rank))))
    assert [output.host.tolist() for output in outputs] == [[0.0] * 3, [1.0] * 3]
    received = FakeTensor(torch.zeros(2))
    if rank == 0:
        dist.send(FakeTensor(torch.ones(2)), 1)
    else:
        dist.recv(received, 0)
        assert received.host.tolist() == [1.0] * 2
    shared = FakeTensor(torch.full((2,), float(rank)))
    dist.broadcast(shared, 1)
    assert shared.host.tolist() == [1.0] * 2
    assert shared.copies == (["out"] if rank == 1 else ["in"])
    dist.group.WORLD.bound_device_id = device  # type: ignore[union-attr]
    own = dist.split_group(split_ranks=[[0], [1]])
    assert (own.size(), dist.get_backend(own)) == (1, "narrowgauge")  # type: ignore[union-attr]
    dist.destroy_process_group()
    return copies


def test_device_tensors_go_through_host_memory() -> None:
    assert run(on_a_fake_device, 2) == [["out", "in", "out", "in"]] * 2


def test_plain_tensors_are_used_in_place() -> None:
    for tensor in (torch.ones(3), torch.ones(2, 3), torch.tensor(1.0), torch.ones(0), torch.ones(5)[2:]):
        assert is_plain(tensor)
        assert to_host(tensor) is tensor
        assert room_for(tensor) is tensor


@pytest.mark.parametrize(
    "tensor", [torch.ones(3, 2).t(), torch.ones(6)[::2], torch.ones(3, dtype=torch.complex64).conj()]
)
def test_others_are_copied_out_and_back(tensor: Tensor) -> None:
    host = to_host(tensor)
    assert is_plain(host)
    assert torch.equal(host, tensor)
    room = room_for(tensor)
    assert room.shape == tensor.shape
    from_host(room.fill_(5), tensor)
    assert torch.equal(tensor, torch.full_like(room, 5))


@pytest.mark.parametrize("tensor", [torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta")])
def test_tensors_without_plain_elements_are_refused(tensor: Tensor) -> None:
    for function in (to_host, room_for):
        with pytest.raises(UsageError, match="dense tensors with data"):
            function(tensor)


def test_bytes_of_one_element_with_a_stride() -> None:
    tensor = torch.arange(4, dtype=torch.int16)[::2][1:]
    assert is_plain(tensor)
    assert as_bytes(tensor).tolist() == [2, 0]
