"""One contract for the group on either executor: every check runs on 4 processes, natively and on Gloo."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

import collectives
from collectives.backend.process_group import NarrowgaugeGroup
from tests import naive
from tests.processes import run
from tests.random_collectives import to_array, to_tensor

SIZE = 4
CHECKS: list[Callable[[int], None]] = []


def check(function: Callable[[int], None]) -> Callable[[int], None]:
    """A part of the contract: called with the rank, in all processes at once."""
    CHECKS.append(function)
    return function


def world() -> Any:
    return dist.group.WORLD


def full(rank: int, *shape: int) -> Tensor:
    return torch.full(shape, float(rank + 1))


def with_root_tensor(kind: Any) -> Any:
    options = kind()
    options.rootTensor = 1
    return options


TOTAL = float(sum(range(1, SIZE + 1)))


@check
def names_and_numbers(rank: int) -> None:
    assert dist.get_backend() == "narrowgauge"
    assert dist.is_backend_available("narrowgauge")
    assert isinstance(world(), NarrowgaugeGroup)
    assert world().name() == "narrowgauge"
    assert (dist.get_rank(), dist.get_world_size()) == (rank, SIZE)
    assert (world().rank(), world().size()) == (rank, SIZE)
    assert world().group_name == c10d._world.pg_names[world()]
    assert world().group_desc == "default_pg"
    assert torch.device("cpu") in world()._device_types
    assert c10d._resolve_process_group(world().group_name) is world()


@check
def every_reduction_of_every_dtype(rank: int) -> None:
    for dtype in naive.DTYPES:
        for op in naive.reductions_of(dtype):
            for count in (1, 100):
                given = [naive.values(dtype, count, np.random.default_rng([7, count, other])) for other in range(SIZE)]
                tensor = to_tensor(given[rank], dtype, strided=False)
                dist.all_reduce(tensor, getattr(dist.ReduceOp, op.upper()))
                np.testing.assert_array_equal(to_array(tensor), naive.fold(given, op, dtype), f"{op} of {dtype}")


@check
def shapes_and_strides(rank: int) -> None:
    for tensor in (
        torch.tensor(float(rank + 1)),
        full(rank, 0),
        full(rank, 3, 0, 2),
        full(rank, 5, 7).t(),
        full(rank, 6, 6)[::2, 1::2],
        full(rank, 2, 3, 4, 5).to(memory_format=torch.channels_last),
        full(rank, 1, 1)[:, 0],
        torch.empty(4, 2)[:1, 0].fill_(rank + 1),
    ):
        dist.all_reduce(tensor)
        assert torch.equal(tensor, torch.full_like(tensor, TOTAL)), tensor
    parameter = torch.nn.Parameter(full(rank, 3))
    dist.all_reduce(parameter.data)
    dist.broadcast(parameter, 0)
    assert parameter.tolist() == [TOTAL] * 3


@check
def lazy_conjugates(rank: int) -> None:
    tensor = torch.complex(full(rank, 3), full(rank, 3))
    gathered = [torch.zeros(3, dtype=torch.complex64) for _ in range(SIZE)]
    dist.all_gather(gathered, tensor)
    assert gathered[2].tolist() == [3 + 3j] * 3
    conjugate = tensor.conj()
    world().allreduce([conjugate]).wait()
    assert conjugate.tolist() == [TOTAL - TOTAL * 1j] * 3
    assert tensor.tolist() == [TOTAL + TOTAL * 1j] * 3


@check
def complex_numbers(rank: int) -> None:
    for dtype in (torch.complex64, torch.complex128):
        tensor = torch.full((5,), complex(rank, -rank), dtype=dtype)
        world().allreduce([tensor]).wait()
        assert tensor.tolist() == [6 - 6j] * 5
        parts = torch.full((SIZE, 2), complex(rank, 1), dtype=dtype)
        out = torch.zeros(2, dtype=dtype)
        world()._reduce_scatter_base(out, parts).wait()
        assert out.tolist() == [6 + 4j] * 2
    with pytest.raises(ValueError, match=r"max of torch\.complex64"):
        world().allreduce([torch.zeros(2, dtype=torch.complex64)], dist.ReduceOp.MAX)


@check
def any_dtype_moves(rank: int) -> None:
    for dtype in (torch.float8_e4m3fn, torch.uint16, torch.complex64, torch.bool, torch.float64):
        tensor = full(rank, 3).to(dtype)
        dist.broadcast(tensor, 2)
        assert torch.equal(tensor.float() if dtype != torch.complex64 else tensor.real,
                           full(2, 3).to(dtype).float() if dtype != torch.complex64 else full(2, 3))  # fmt: skip
        gathered = [torch.zeros(2, dtype=torch.float32).to(dtype) for _ in range(SIZE)]
        world().allgather([gathered], [full(rank, 2).to(dtype)]).wait()
        assert all(
            torch.equal(gathered[r].view(torch.uint8), full(r, 2).to(dtype).view(torch.uint8)) for r in range(SIZE)
        )


@check
def works_and_futures(rank: int) -> None:
    tensors = [full(rank, 50_000) for _ in range(6)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    futures = [work.get_future() for work in works]
    doubled = futures[0].then(lambda future: future.value()[0] * 2)
    assert works[1].wait()
    assert works[1].wait(timedelta(seconds=5))
    torch.futures.wait_all(futures)
    assert doubled.wait()[0].item() == 2 * TOTAL
    for work, future, tensor in zip(works, futures, tensors, strict=True):
        assert work.is_completed()
        assert work.is_success()
        assert work.exception() is None
        assert work.result()[0] is tensor
        assert work.get_future() is future
        assert future.value()[0][-1].item() == TOTAL
    assert dist.all_reduce(tensors[0], async_op=True).get_future().wait()[0].shape == (50_000,)


@check
def callbacks_may_communicate(rank: int) -> None:
    def again(future: Any) -> Tensor:
        tensor = dist.all_reduce(future.value()[0], async_op=True).get_future().wait()[0]
        dist.all_reduce(tensor)
        return tensor

    work = dist.all_reduce(full(rank, 3), async_op=True)
    assert work.get_future().then(again).wait().tolist() == [TOTAL * SIZE * SIZE] * 3


@check
def all_gathers_of_several(rank: int) -> None:
    outputs = [[torch.zeros(2), torch.zeros(3)] for _ in range(SIZE)]
    world().allgather_coalesced(outputs, [torch.full((2,), float(rank)), torch.full((3,), 10.0 + rank)]).wait()
    assert [[each[0].item() for each in of_rank] for of_rank in outputs] == [[r, 10.0 + r] for r in range(SIZE)]
    with pytest.raises(ValueError, match="got 2 lists of 1, 1 outputs; wanted 4 lists of 1"):
        world().allgather_coalesced([[torch.zeros(1)]] * 2, [torch.zeros(1)])


@check
def sparse_sums(rank: int) -> None:
    tensor = torch.sparse_coo_tensor(torch.tensor([[rank, 5]]), torch.ones(2), (8,))
    dist.all_reduce(tensor)
    assert tensor.to_dense().tolist() == [1.0] * SIZE + [0.0, float(SIZE), 0.0, 0.0]


@check
def refusals_leave_the_group_whole(rank: int) -> None:
    refused: list[tuple[str, Callable[[], Any]]] = [
        ("PREMUL_SUM", lambda: dist.all_reduce(torch.ones(1), torch._C._distributed_c10d._make_nccl_premul_sum(2.0))),
        ("without a codec", lambda: collectives.all_reduce(torch.ones(2), residual=torch.zeros(2))),
        ("codec is 'int7'|runs on Gloo", lambda: collectives.all_reduce(torch.ones(2), codec="int7")),
        (
            "wanted 2 elements|runs on Gloo",
            lambda: collectives.all_reduce(torch.ones(2), codec="int8", residual=torch.zeros(3)),
        ),
        ("sums and averages|runs on Gloo", lambda: collectives.all_reduce(torch.ones(2), "MAX", codec="int8")),
        ("bitwise", lambda: dist.all_reduce(torch.ones(1), dist.ReduceOp.BAND)),
        ("float8", lambda: dist.all_reduce(torch.ones(1).to(torch.float8_e4m3fn))),
        ("layout", lambda: world().broadcast([torch.ones(2, 2).to_sparse()])),
        ("meta", lambda: world().allreduce([torch.ones(2, device="meta")])),
        ("wanted 4 times", lambda: world()._allgather_base(torch.ones(3), torch.ones(1))),
        ("output tensors", lambda: world().allgather([[torch.ones(1)] * 3], [torch.ones(1)])),
        ("one dtype", lambda: world()._allgather_base(torch.ones(4), torch.ones(1, dtype=torch.int32))),
        ("wanted 4 times", lambda: world()._reduce_scatter_base(torch.ones(2), torch.ones(7))),
        ("add up to 8", lambda: dist.all_to_all_single(torch.ones(8), torch.ones(8), [2, 2, 2, 1], [2, 2, 2, 2])),
        ("split evenly", lambda: dist.all_to_all_single(torch.ones(8), torch.ones(7))),
        ("got a str as op", lambda: world().allreduce([torch.ones(1)], "sum")),
        # c10d's lists are for several devices of a rank, and Gloo adds up the tensors of one; NCCL refuses them, too.
        ("list of 2; .* allreduce_coalesced takes several", lambda: world().allreduce([torch.ones(1), torch.ones(1)])),
        ("reduce: got a list of 2", lambda: world().reduce([torch.ones(1), torch.ones(1)], root=0)),
        ("broadcast: got a list of 2", lambda: world().broadcast([torch.ones(1), torch.ones(1)])),
        ("all_gather: got a list of 2", lambda: world().allgather([[torch.ones(1)] * 8] * 2, [torch.ones(1)] * 2)),
        ("reduce_scatter: got a list of 2", lambda: world().reduce_scatter([torch.ones(1)] * 2, [[torch.ones(1)]] * 2)),
        ("gather: root is 4; this group has ranks 0 to 3", lambda: world().gather([], [torch.ones(1)], root=4)),
        ("scatter: root is -1; this group has ranks", lambda: world().scatter([torch.ones(1)], [], root=-1)),
        (
            "reduce: the root tensor is number 1",
            lambda: world().reduce([torch.ones(1)], with_root_tensor(c10d.ReduceOptions)),
        ),
        (
            "broadcast: the root tensor is number 1",
            lambda: world().broadcast([torch.ones(1)], with_root_tensor(c10d.BroadcastOptions)),
        ),
        ("room for 8", lambda: world().gather([torch.ones(2) for _ in range(4)], [torch.ones(1)], root=rank)),
        ("room for 8", lambda: world().scatter([torch.ones(2)], [[torch.ones(1)] * 4], root=rank)),
        ("room for 8", lambda: dist.all_to_all([torch.ones(2) for _ in range(4)], [torch.ones(1)] * 4)),
        ("^gather: got a list of 2", lambda: world().gather([[torch.ones(1)] * 4] * 2, [torch.ones(1)], root=rank)),
        ("^scatter: got a list of 2", lambda: world().scatter([torch.ones(1)], [[torch.ones(1)] * 4] * 2, root=rank)),
        ("gather: got a list of 0", lambda: world().gather([], [])),
        ("scatter: got a list of 2", lambda: world().scatter([torch.ones(1)] * 2, [])),
        ("all_reduce: got a list of 0", lambda: world().allreduce([])),
        ("all_reduce: got an empty list", lambda: dist.all_reduce_coalesced([])),
        ("all_gather: got a list of 0", lambda: world().allgather([], [])),
    ]
    for words, call in refused:
        with pytest.raises(ValueError, match=words):
            call()
    dist.barrier()


@check
def aliased_buffers(rank: int) -> None:
    whole = torch.zeros(SIZE * 3)
    own = whole[rank * 3 : rank * 3 + 3].fill_(rank)
    world()._allgather_base(whole, own).wait()
    assert whole.tolist() == [float(r) for r in range(SIZE) for _ in range(3)]
    whole = torch.arange(SIZE * 3.0)
    world()._reduce_scatter_base(whole[rank * 3 : rank * 3 + 3], whole).wait()
    assert whole[rank * 3 : rank * 3 + 3].tolist() == [SIZE * (rank * 3.0 + i) for i in range(3)]
    whole = torch.arange(SIZE * 2.0) + 100 * rank
    dist.all_to_all_single(whole, whole)
    assert whole.tolist() == [100.0 * r + 2 * rank + i for r in range(SIZE) for i in range(2)]


@check
def c10d_overloads(rank: int) -> None:
    tensor = full(rank, 2)
    world().allreduce(tensor).wait()
    world().allreduce([tensor], dist.ReduceOp.MAX).wait()
    world().allreduce(tensor, op=dist.ReduceOp.AVG, timeout=timedelta(seconds=120)).wait()
    assert tensor.tolist() == [TOTAL] * 2
    tensor = full(rank, 2)
    world().broadcast(tensor, root=1).wait()
    assert tensor.tolist() == [2.0] * 2
    outputs = [torch.zeros(2) for _ in range(SIZE)]
    world().allgather(outputs, full(rank, 2)).wait()
    assert outputs[3].tolist() == [4.0] * 2
    output = torch.zeros(2)
    world().reduce_scatter(output, outputs).wait()
    assert output.tolist() == [SIZE * (rank + 1.0)] * 2
    world().gather(outputs if rank == 1 else [], full(rank, 2), root=1).wait()
    world().scatter(output, outputs if rank == 1 else [], root=1).wait()
    assert output.tolist() == [rank + 1.0] * 2
    world().barrier(timeout=timedelta(seconds=120)).wait()


@check
def gather_into_one_tensor(rank: int) -> None:
    opts = c10d.GatherOptions()
    opts.rootRank = 1
    for output in (torch.zeros(SIZE * 2, 3), torch.zeros(SIZE, 2, 3), torch.zeros(3, SIZE * 2).t()):
        given = output if rank == 1 else torch.empty(0)
        world().gather_single(given, full(rank, 6).view(2, 3), opts).wait()
        if rank == 1:
            assert output.reshape(SIZE, 6).tolist() == [[r + 1.0] * 6 for r in range(SIZE)]
    if hasattr(dist, "gather_single"):  # torch 2.14
        gathered = torch.zeros(SIZE) if rank == 2 else None
        dist.gather_single(torch.tensor(float(rank)), gathered, dst=2)
        assert gathered is None or gathered.tolist() == [0.0, 1.0, 2.0, 3.0]
    opts.rootRank = rank
    for output in (torch.zeros(7), torch.zeros(2, SIZE), torch.tensor(0.0)):
        with pytest.raises(ValueError, match=r"gather: the output is .* wanted 4 times the input"):
            world().gather_single(output, torch.ones(2), opts)


@check
def what_torch_asks_a_group(rank: int) -> None:
    for feature in ("reconfigure", "window", "completion_hooks", "abort_hooks"):  # those of 2.14 and 2.15
        assert getattr(world(), f"supports_{feature}") is False


@check
def sub_groups(rank: int) -> None:
    low, high = dist.new_group([0, 1]), dist.new_group([3, 2])
    group, members = (low, [0, 1]) if rank < 2 else (high, [2, 3])
    tensor = full(rank, 4)
    dist.all_reduce(tensor, group=group)
    assert tensor.tolist() == [sum(member + 1.0 for member in members)] * 4
    tensor = full(rank, 4)
    dist.broadcast(tensor, src=members[1], group=group)
    assert tensor.tolist() == [members[1] + 1.0] * 4
    assert dist.get_backend(group) == "narrowgauge"
    part = world().split_group([1, 3], group_name="odd")
    assert (part is None) == (rank % 2 == 0)
    if part is not None:
        tensor = full(rank, 4)
        part.allreduce([tensor]).wait()
        assert tensor.tolist() == [6.0] * 4
        assert (part.group_name, part.rank(), part.size()) == ("odd", rank // 2, 2)
        part.shutdown()
    dist.destroy_process_group(group)
    dist.barrier()


@check
def messages_between_two(rank: int) -> None:
    if rank == 0:
        dist.send(torch.arange(6.0).view(2, 3).t(), 3)
        dist.send(full(rank, 2), 2, tag=5)
    elif rank == 3:
        received = torch.zeros(6, 2)[::2]
        assert dist.recv(received, 0) == 0
        assert torch.equal(received, torch.arange(6.0).view(2, 3).t())
    elif rank == 2:
        received = torch.zeros(2)
        assert dist.recv(received, tag=5) == 0
        assert received.tolist() == [1.0] * 2
    received, sent = torch.zeros(3), full(rank, 3)
    to_right = dist.P2POp(dist.isend, sent, (rank + 1) % SIZE)
    from_left = dist.P2POp(dist.irecv, received, (rank - 1) % SIZE)
    for work in dist.batch_isend_irecv([to_right, from_left]):
        work.wait()
    assert received.tolist() == full((rank - 1) % SIZE, 3).tolist()
    world().monitored_barrier(timedelta(seconds=120))


@check
def objects(rank: int) -> None:
    gathered: list[Any] = [None] * SIZE
    dist.all_gather_object(gathered, {"rank": rank, "text": "x" * rank})
    assert gathered == [{"rank": other, "text": "x" * other} for other in range(SIZE)]
    shared: list[Any] = [rank, "from", rank]
    dist.broadcast_object_list(shared, src=2)
    assert shared == [2, "from", 2]
    collected: list[Any] | None = [None] * SIZE if rank == 1 else None
    dist.gather_object(("item", rank), collected, dst=1)
    assert collected is None or collected == [("item", other) for other in range(SIZE)]
    mine: list[Any] = [None]
    dist.scatter_object_list(mine, [f"for {other}" for other in range(SIZE)] if rank == 3 else None, src=3)
    assert mine == [f"for {rank}"]
    if rank == 0:
        dist.send_object_list(["a", 1], dst=1)
    elif rank == 1:
        received: list[Any] = [None, None]
        dist.recv_object_list(received, src=0)
        assert received == ["a", 1]


@check
def functional_collectives(rank: int) -> None:
    group = world()
    assert functional.all_reduce(full(rank, 3), "avg", group).tolist() == [TOTAL / SIZE] * 3
    gathered = functional.all_gather_tensor(full(rank, 2), 0, group)
    assert gathered.tolist() == [float(other + 1) for other in range(SIZE) for _ in range(2)]
    assert functional.reduce_scatter_tensor(torch.arange(8.0), "sum", 0, group).tolist() == [8.0 * rank, 8.0 * rank + 4]
    assert functional.broadcast(full(rank, 2), 3, group).tolist() == [4.0] * 2
    exchanged = functional.all_to_all_single(torch.arange(4.0) + 10 * rank, None, None, group)
    assert exchanged.tolist() == [10.0 * other + rank for other in range(SIZE)]
    sums = functional.all_reduce_coalesced([full(rank, 2), full(rank, 3)], "sum", group)
    assert [each.tolist() for each in sums] == [[TOTAL] * 2, [TOTAL] * 3]
    pieces = functional.all_gather_into_tensor_coalesced([full(rank, 1), full(rank, 2)], group)
    assert pieces[0].tolist() == [1.0, 2.0, 3.0, 4.0]
    scattered = functional.reduce_scatter_tensor_coalesced([torch.ones(4), torch.ones(8)], "sum", [0, 0], group)
    assert [each.tolist() for each in scattered] == [[4.0], [4.0, 4.0]]


@check
def coalescing_manager(rank: int) -> None:
    tensors = [full(rank, 3), full(rank, 5), full(rank, 2).to(torch.bfloat16)]
    with c10d._coalescing_manager(async_ops=True) as manager:
        for tensor in tensors:
            dist.all_reduce(tensor)
    manager.wait()
    assert all(torch.equal(tensor, torch.full_like(tensor, TOTAL)) for tensor in tensors)


@check
def device_mesh(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    whole = torch.arange(24.0).view(6, 4)
    spread = distribute_tensor(whole, mesh, [Shard(0), Shard(1)])
    assert torch.equal(spread.full_tensor(), whole)
    assert torch.equal(spread.redistribute(mesh, [Replicate(), Shard(0)]).full_tensor(), whole)


@check
def own_front_door(rank: int) -> None:
    before = collectives.stats()
    tensor = full(rank, 1000)
    collectives.all_reduce(tensor)
    work = collectives.all_reduce(tensor, "max", async_op=True)
    assert work is not None
    work.wait()  # type: ignore[attr-defined]
    assert tensor[-1].item() == TOTAL
    after = collectives.stats()
    assert after["ops"] - before["ops"] == 2
    assert after["bytes"] - before["bytes"] == 8000
    assert 0 < after["wait_s"] - before["wait_s"] <= after["busy_s"] - before["busy_s"] + 0.1
    with pytest.raises(ValueError, match="wanted sum, avg"):
        collectives.all_reduce(tensor, "mean")
    if world().engine is not None:
        assert str(collectives.plan()).startswith(f"all_reduce of {SIZE} ranks")
    else:
        with pytest.raises(ValueError, match="runs on Gloo"):
            collectives.plan()


def run_checks(rank: int, size: int, store: Any, backend: str) -> dict[str, str]:
    """Tracebacks of the checks that failed, by name."""
    warnings.simplefilter("ignore", FutureWarning)
    collectives.configure(backend=backend)
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    failed = {}
    for each in CHECKS:
        try:
            each(rank)
        except BaseException:
            failed[each.__name__] = f"rank {rank}: {traceback.format_exc()}"
    dist.destroy_process_group()
    return failed


@pytest.fixture(scope="module", params=["narrowgauge", "gloo"])
def failures(request: pytest.FixtureRequest) -> list[dict[str, str]]:
    return run(run_checks, SIZE, request.param, deadline_s=280)


@pytest.mark.parametrize("name", [each.__name__ for each in CHECKS])
def test_contract(failures: list[dict[str, str]], name: str) -> None:
    problems = [failed[name] for failed in failures if name in failed]
    assert not problems, "\n".join(problems)
