"""Tensors that live elsewhere: a fake device whose memory the engine cannot touch, on groups of one and of several."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

from collectives.backend import process_group, staging, tensors
from collectives.backend.staging import as_bytes, from_host, is_plain, room_for, to_host
from collectives.errors import UsageError
from tests.collectives.fake_streams import StreamFuture
from tests.processes import run

aten = torch.ops.aten
VIEWS = (aten.detach.default, aten.view.default, aten.split.Tensor, aten.slice.Tensor, aten.alias.default)


class FakeTensor(Tensor):
    """Says that it lives on device "fake"; only views, and copies from and to the CPU, which are counted.

    A copy that need not block is done when somebody waits for it (`arrive`), and until then has no effect.
    """

    under_way: ClassVar[list[Callable[[], object]]] = []

    host: Tensor
    copies: list[str]

    @staticmethod
    def __new__(cls, host: Tensor) -> FakeTensor:
        made: FakeTensor = Tensor._make_wrapper_subclass(cls, host.shape, dtype=host.dtype, device="fake:0")  # type: ignore[attr-defined]
        made.host, made.copies = host, []
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function in VIEWS:
            viewed = function(arguments[0].host, *arguments[1:], **(named or {}))
            return pytree.tree_map_only(Tensor, lambda host: FakeTensor._sharing(host, arguments[0].copies), viewed)
        assert function is torch.ops.aten.copy_.default, f"{function} on the fake device"
        to, source = arguments[:2]
        for tensor, direction in ((to, "in"), (source, "out")):
            if isinstance(tensor, FakeTensor):
                tensor.copies.append(direction)
        to_memory, from_memory = (each.host if isinstance(each, FakeTensor) else each for each in (to, source))
        if len(arguments) > 2 and arguments[2]:
            FakeTensor.under_way.append(lambda: to_memory.copy_(from_memory))
        else:
            to_memory.copy_(from_memory)
        return to

    @classmethod
    def _sharing(cls, host: Tensor, copies: list[str]) -> FakeTensor:
        made = cls(host)
        made.copies = copies
        return made


needs_fake_device = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="a device written in Python needs torch 2.10",
)


def fake_device() -> None:
    backend_registration._setup_privateuseone_for_python_backend("fake")


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


@needs_fake_device
def test_device_tensors_go_through_host_memory() -> None:
    assert run(on_a_fake_device, 2) == [["out", "in", "out", "in"]] * 2


def in_chunks(rank: int, size: int, store: Any) -> tuple[list[str], bool, list[bool]]:
    """Rank 0 has a device with streams, page-locked memory and slow copies, rank 1 has none.

    Returns:
        The tensor's copies, whether the call returned before any of them was done, whether results were right.
    """
    copied = threading.Event()
    lock = threading.Lock()

    def arrive(event: torch.Event, held: Tensor) -> None:
        copied.wait()
        with lock:
            while FakeTensor.under_way:
                FakeTensor.under_way.pop(0)()

    if rank == 0:
        fake_device()
        staging._pins = lambda device_type: device_type == "fake"  # type: ignore[assignment]
        staging._page_locked = lambda shape, dtype: torch.empty(shape, dtype=dtype)
        staging._wait_for_copy = arrive
        torch.futures.Future = StreamFuture  # type: ignore[misc, assignment]  # torch's needs a device with streams
    process_group.CHUNK_BYTES = 4000
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    given = torch.arange(3500.0) * (rank + 1)
    tensor = FakeTensor(given.clone()) if rank == 0 else given.clone()
    memory = tensor.host if isinstance(tensor, FakeTensor) else tensor
    copies = tensor.copies if isinstance(tensor, FakeTensor) else []
    work: Any = dist.all_reduce(tensor, async_op=True)
    later: Any = dist.all_reduce(small := torch.ones(3), async_op=True)  # must not overtake
    returned_first = torch.equal(memory, given) if rank == 0 else not work.is_completed()
    copied.set()
    work.wait()
    later.wait()
    right = [torch.equal(memory, torch.arange(3500.0) * 3), small.tolist() == [2.0] * 3]
    right.append(work.get_future().wait()[0] is tensor)
    dist.all_reduce(tensor)
    right.append(torch.equal(memory, torch.arange(3500.0) * 6))
    seen = list(copies)
    transposed = torch.arange(3000.0).reshape(50, 60).t()
    dist.all_reduce(transposed)
    right.append(torch.equal(transposed, 2 * torch.arange(3000.0).reshape(50, 60).t()))
    broadcast = FakeTensor(torch.full((5,), 7.0)) if rank == 0 else torch.zeros(5)
    dist.broadcast(broadcast, 0)
    right.append(rank == 0 or broadcast.tolist() == [7.0] * 5)
    gathered = torch.zeros(6)
    dist.all_gather_into_tensor(gathered, torch.full((3,), float(rank)))
    right.append(gathered.tolist() == [0.0] * 3 + [1.0] * 3)
    dist.destroy_process_group()
    return seen, returned_first, right


@needs_fake_device
def test_copies_run_beside_the_network_in_a_group_of_mixed_devices() -> None:
    (copies, returned_first, right), (_, other_returned_first, other_right) = run(in_chunks, 2)
    assert (copies.count("out"), copies.count("in")) == (8, 8)  # four chunks, twice
    assert copies[:4] == ["out"] * 4  # all on their way before the first result
    assert returned_first
    assert other_returned_first
    assert all(right), right
    assert all(other_right), other_right


def in_inference_mode(rank: int, size: int, store: Any, with_streams: bool) -> None:
    """Results go to tensors that were made in inference mode, from threads that are not in it."""

    def arrive(event: torch.Event, held: Tensor) -> None:
        with torch.inference_mode():  # a device writes where it was asked to
            while FakeTensor.under_way:
                FakeTensor.under_way.pop(0)()

    fake_device()
    if with_streams:
        staging._pins = lambda device_type: device_type == "fake"  # type: ignore[assignment]
        staging._page_locked = lambda shape, dtype: torch.empty(shape, dtype=dtype)
        staging._wait_for_copy = arrive
    process_group.CHUNK_BYTES = 1600
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    for called_in_it, is_async in ((True, False), (True, True), (False, False), (False, True)):
        with torch.inference_mode():
            summed, shared = FakeTensor(torch.full((1000,), rank + 1.0)), FakeTensor(torch.full((3,), rank + 1.0))
            gathered, own = [FakeTensor(torch.zeros(3)) for _ in range(size)], FakeTensor(torch.full((3,), rank + 1.0))
        with torch.inference_mode(called_in_it):
            works: list[Any] = [
                dist.all_reduce(summed, async_op=is_async),
                dist.broadcast(shared, 1, async_op=is_async),
                dist.all_gather(gathered, own, async_op=is_async),
            ]
            for work in works if is_async else []:
                work.wait()
        assert summed.host.tolist() == [3.0] * 1000
        assert shared.host.tolist() == [2.0] * 3
        assert [each.host.tolist() for each in gathered] == [[1.0] * 3, [2.0] * 3]
    dist.destroy_process_group()


@needs_fake_device
@pytest.mark.parametrize("with_streams", [False, True])
def test_tensors_of_inference_mode_on_a_device(with_streams: bool) -> None:
    run(in_inference_mode, 2, with_streams)


def failing_copy(rank: int, size: int, store: Any) -> str:
    """What a caller is told when a device breaks down under a copy."""

    def arrive(event: torch.Event, held: Tensor) -> None:
        raise RuntimeError("the device fell off its bus")

    fake_device()
    staging._pins = lambda device_type: device_type == "fake"  # type: ignore[assignment]
    staging._page_locked = lambda shape, dtype: torch.empty(shape, dtype=dtype)
    staging._wait_for_copy = arrive
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    with pytest.raises(RuntimeError) as raised:
        dist.all_reduce(FakeTensor(torch.ones(3)))
    dist.destroy_process_group()
    return str(raised.value)


@needs_fake_device
def test_a_broken_device_is_the_callers_error() -> None:
    assert run(failing_copy, 1) == ["the device fell off its bus"]


class SideStream:
    """Notes what it waits for."""

    def __init__(self) -> None:
        self.waited_for: list[object] = []

    def wait_stream(self, other: object) -> None:
        self.waited_for.append(other)


ON_A_DEVICE = torch.zeros(8)[::2]  # stands for it: not plain
PLAIN = [torch.zeros(4), torch.zeros(4)]
CALLS: dict[str, Callable[[], object]] = {
    "broadcast": lambda: tensors.broadcast(ON_A_DEVICE, 0, 1),
    "all_gather": lambda: tensors.all_gather([ON_A_DEVICE] * 2, PLAIN[0], 1, 2),
    "all_gather_single": lambda: tensors.all_gather_single(torch.zeros(16)[::2], PLAIN[0], 1, 2),
    "reduce_scatter": lambda: tensors.reduce_scatter(ON_A_DEVICE, PLAIN, "sum", 1, 2),
    "all_to_all": lambda: tensors.all_to_all([ON_A_DEVICE] * 2, PLAIN, 2),
    "all_to_all_single": lambda: tensors.all_to_all_single(ON_A_DEVICE, PLAIN[0], [], [], 2),
    "gather": lambda: tensors.gather([ON_A_DEVICE] * 2, PLAIN[0], 1, 1, 2),
    "scatter": lambda: tensors.scatter(ON_A_DEVICE, [], 0, 1, 2),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_come_after_what_the_caller_has_queued(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only outputs are on a device, so nothing that goes in waits for it."""
    streams: dict[str, SideStream] = {}
    monkeypatch.setattr(staging, "_pins", lambda device_type: True)
    monkeypatch.setattr(staging, "_page_locked", lambda shape, dtype: torch.empty(shape, dtype=dtype))
    monkeypatch.setattr(staging, "_side_stream", lambda device, to: streams.setdefault(to, SideStream()))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: "the caller's")
    CALLS[name]()
    assert streams["in"].waited_for == ["the caller's"]


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
