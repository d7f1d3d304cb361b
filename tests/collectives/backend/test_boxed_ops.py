"""`torch.ops.c10d`: torch's operators on a boxed group."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from collectives.backend.c10d import TorchBackend
from tests.processes import run


def results(rank: int) -> dict[str, list[Tensor]]:
    """What each operator came to; those with a reduction cannot be called from Python, which cannot box one."""
    group: Any = dist.group.WORLD
    boxed, ops, on_root = group.boxed(), torch.ops.c10d, rank == 0

    def own(count: int = 4) -> Tensor:
        return torch.arange(float(count)) + 10 * rank

    shared, whole, exchanged, received, message = own(), own(8), own(), own(), own()
    lists, at_root = [[own(), own()]], [[own(), own()]] if on_root else []
    ops.broadcast_([shared], boxed, 1, 0, False, -1)
    _, work = ops.allgather_(lists, [own()], boxed, True, -1)
    work.wait()
    ops._allgather_base_(whole, own(), boxed, False, -1)
    ops.alltoall_base_(exchanged, own(), boxed, [], [], False, -1)
    ops.gather_(at_root, [own()], boxed, 0, False, -1)
    ops.scatter_([received], [[own(), own() * 5]] if on_root else [], boxed, 0, False, -1)
    ops.barrier(torch.zeros(1), boxed, [], False, -1)
    work = ops.send([message], boxed, 1, 0) if on_root else ops.recv_([message], boxed, 0, 0)
    work.wait()
    singles = {"broadcast": shared, "base": whole, "all_to_all": exchanged, "scatter": received, "message": message}
    return {
        **{name: [each] for name, each in singles.items()},
        "all_gather": lists[0],
        "gather": at_root[0] if on_root else [],
    }


def both(rank: int, size: int, store: Any) -> None:
    found = {}
    for backend in ("gloo", "narrowgauge"):
        meeting = dist.PrefixStore(backend, store)
        dist.init_process_group(backend, store=meeting, rank=rank, world_size=size)
        found[backend] = results(rank)
        dist.destroy_process_group()
    torch.testing.assert_close(found["narrowgauge"], found["gloo"])


@pytest.mark.skipif(
    isinstance(TorchBackend.__init__, types.WrapperDescriptorType),
    reason="this torch (before 2.14) lets only C++ make a backend for its operators",
)
def test_operators_on_a_boxed_group_do_as_over_gloo() -> None:
    run(both, 2)
