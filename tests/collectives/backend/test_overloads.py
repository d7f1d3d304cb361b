"""Every overload that torch's C++ process group has, by position and by name, over Gloo's group and over ours.

The overloads are read from the docstrings of the installed torch's bindings, so a new one fails here until it has a
value in `ARGUMENTS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d
from torch.utils import _pytree as pytree

from collectives.backend.process_group import NarrowgaugeGroup
from collectives.errors import UsageError
from tests.processes import run

SIZE = 3
ROOT = 1
PATIENCE = timedelta(seconds=100)
Factory = Callable[[int], Any]


def full(rank: int, *shape: int) -> Tensor:
    return torch.full(shape, float(rank + 1))


def each(count: int) -> list[Tensor]:
    return [torch.zeros(4) for _ in range(count)]


def ranked(rank: int) -> list[Tensor]:
    return [torch.full((4,), 10.0 * rank + other) for other in range(SIZE)]


COMMON: dict[str, Factory] = {
    "op": lambda rank: dist.ReduceOp.MAX,
    "timeout": lambda rank: PATIENCE,
    "root": lambda rank: ROOT,
    "tensor": lambda rank: full(rank, 4),
    "tensors": lambda rank: [full(rank, 4)],
}
IN_OUT: dict[str, Factory] = {"input": lambda rank: full(rank, 4), "output": lambda rank: torch.zeros(4 * SIZE)}
LISTS_IN_OUT: dict[str, Factory] = {
    "inputs": lambda rank: [full(rank, 4), full(rank, 2)],
    "outputs": lambda rank: [torch.zeros(4 * SIZE), torch.zeros(2 * SIZE)],
}
CHUNKS_IN_OUT: dict[str, Factory] = {
    "outputTensor": lambda rank: torch.zeros(4),
    "inputTensor": lambda rank: full(rank, 4 * SIZE),
    "outputs": lambda rank: [torch.zeros(4), torch.zeros(2)],
    "inputs": lambda rank: [full(rank, 4 * SIZE), full(rank, 2 * SIZE)],
}
ALL_TO_ALL: dict[str, Factory] = {
    "output": lambda rank: torch.zeros(2 * SIZE),
    "input": lambda rank: full(rank, 2 * SIZE),
    "output_split_sizes": lambda rank: [2] * SIZE,
    "input_split_sizes": lambda rank: [2] * SIZE,
}
# By method: its class of options, and how the arguments are made, by their names in torch. A name that ends with ":1"
# is that of the overload for one tensor, where both overloads use the name.
ARGUMENTS: dict[str, tuple[Any, dict[str, Factory]]] = {
    "allreduce": (c10d.AllreduceOptions, {}),
    "allreduce_coalesced": (c10d.AllreduceCoalescedOptions, {}),
    "reduce": (c10d.ReduceOptions, {}),
    "broadcast": (c10d.BroadcastOptions, {}),
    "allgather": (
        c10d.AllgatherOptions,
        {
            "output_tensors": lambda rank: [each(SIZE)],
            "input_tensors": lambda rank: [full(rank, 4)],
            "output_tensors:1": lambda rank: each(SIZE),
            "input_tensor": lambda rank: full(rank, 4),
        },
    ),
    "allgather_coalesced": (
        c10d.AllgatherOptions,
        {
            "output_lists": lambda rank: [each(1) for _ in range(SIZE)],
            "input_list": lambda rank: [full(rank, 4)],
        },
    ),
    "_allgather_base": (c10d.AllgatherOptions, IN_OUT),
    "all_gather_single": (c10d.AllgatherOptions, IN_OUT),
    "allgather_into_tensor_coalesced": (c10d.AllgatherOptions, LISTS_IN_OUT),
    "all_gather_single_coalesced": (c10d.AllgatherOptions, LISTS_IN_OUT),
    "gather": (
        c10d.GatherOptions,
        {
            "output_tensors": lambda rank: [each(SIZE)] if rank == 0 else [],
            "input_tensors": lambda rank: [full(rank, 4)],
            "output_tensors:1": lambda rank: each(SIZE) if rank == ROOT else [],
            "input_tensor": lambda rank: full(rank, 4),
        },
    ),
    "scatter": (
        c10d.ScatterOptions,
        {
            "output_tensors": lambda rank: each(1),
            "input_tensors": lambda rank: [ranked(rank)] if rank == 0 else [],
            "output_tensor": lambda rank: torch.zeros(4),
            "input_tensors:1": lambda rank: ranked(rank) if rank == ROOT else [],
        },
    ),
    "reduce_scatter": (
        c10d.ReduceScatterOptions,
        {
            "output_tensors": lambda rank: each(1),
            "input_tensors": lambda rank: [ranked(rank)],
            "output": lambda rank: torch.zeros(4),
            "input": ranked,
        },
    ),
    "_reduce_scatter_base": (c10d.ReduceScatterOptions, CHUNKS_IN_OUT),
    "reduce_scatter_single": (c10d.ReduceScatterOptions, CHUNKS_IN_OUT),
    "reduce_scatter_tensor_coalesced": (c10d.ReduceScatterOptions, CHUNKS_IN_OUT),
    "reduce_scatter_single_coalesced": (c10d.ReduceScatterOptions, CHUNKS_IN_OUT),
    "alltoall": (
        c10d.AllToAllOptions,
        {"output_tensors": lambda rank: each(SIZE), "input_tensors": ranked},
    ),
    "alltoall_base": (c10d.AllToAllOptions, ALL_TO_ALL),
    "all_to_all_single": (c10d.AllToAllOptions, ALL_TO_ALL),
    "barrier": (c10d.BarrierOptions, {}),
}
NOT_ON_GLOO = ("alltoall",)  # torch's Gloo has only the form with splits


def overloads(method: str) -> Iterator[list[tuple[str, bool]]]:
    """For each overload the arguments' names, and whether each may be left out."""
    text = getattr(dist.ProcessGroup, method).__doc__
    for signature in re.findall(rf"^(?:\d+\. )?{method}\(self: [\w.]+(.*)\) -> ", text, re.MULTILINE):
        yield [(name, "=" in rest) for name, rest in re.findall(r", (\w+): ((?:[^,\[]|\[.*?\]+)*)", signature)]


def calls(method: str) -> Iterator[list[str]]:
    """The arguments' names of every way to call the method: each overload, with ever fewer of its defaults."""
    seen = set()
    for overload in overloads(method):
        needed = sum(not has_default for _, has_default in overload)
        for count in range(needed, len(overload) + 1):
            names = tuple(name for name, _ in overload[:count])
            if names not in seen:
                seen.add(names)
                yield list(names)


def made(method: str, names: list[str], rank: int) -> list[Any]:
    """Values for the arguments."""
    kind, own = ARGUMENTS[method]
    is_single = bool({"tensor", "input_tensor", "output_tensor"} & {*names})
    values = []
    for name in names:
        if name == "opts":
            opts = kind()
            opts.timeout = PATIENCE
            values.append(opts)
        else:
            key = f"{name}:1" if is_single and f"{name}:1" in own else name
            values.append((own.get(key) or COMMON[key])(rank))
    return values


def outcome(group: Any, method: str, names: list[str], rank: int, by_name: bool) -> str:
    """All tensors among the arguments after the call, as text; or the call's error."""
    values = made(method, names, rank)
    try:
        call = getattr(group, method)
        work = call(**dict(zip(names, values, strict=True))) if by_name else call(*values)
        work.wait()
    except Exception as error:  # shown beside the other group's outcome
        return f"{type(error).__name__}: {error}"
    if method == "reduce" and rank != (ROOT if "root" in names else 0):
        return "not the root"  # Gloo leaves partial sums in the tensors of the others
    return str([leaf.tolist() for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)])


def all_ways(rank: int, size: int, store: Any) -> list[str]:
    def group_of(backend: str) -> Any:
        return dist.new_group(backend=backend, timeout=PATIENCE)

    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    gloo, ours = group_of("gloo"), group_of("narrowgauge")
    assert isinstance(ours, NarrowgaugeGroup)
    lines = []
    for method in ARGUMENTS:
        if not hasattr(dist.ProcessGroup, method):  # renamed between releases
            continue
        for names in calls(method):
            for by_name in (False, True):
                got = outcome(ours, method, names, rank, by_name)
                wanted = outcome(gloo, method, names, rank, by_name) if method not in NOT_ON_GLOO else got
                mark = "same" if got == wanted and "Error" not in got else f"ours {got}, Gloo {wanted}"
                lines.append(f"{method}({', '.join(names)}) by {'name' if by_name else 'position'}: {mark}")
    dist.destroy_process_group()
    return lines


def test_the_table_is_read() -> None:
    """Fails if torch's docstrings change their form."""
    assert list(overloads("reduce")) == [
        [("tensors", False), ("opts", True)],
        [("tensor", False), ("root", False), ("op", True), ("timeout", True)],
    ]
    assert [len(names) for names in calls("alltoall_base")] == [4, 5, 5]


def test_every_overload_does_what_gloo_does() -> None:
    results = run(all_ways, SIZE)
    assert len(results[0]) > 90
    assert [line for lines in results for line in lines if not line.endswith(": same")] == []


class Bare(NarrowgaugeGroup):
    """A group of nobody: only what comes before the first tensor is looked at."""

    def __init__(self) -> None:
        dist.ProcessGroup.__init__(self, 0, 1)


@pytest.mark.parametrize(
    ("given", "named", "message"),
    [
        ([], {}, "reduce lacks the argument tensors or tensor"),
        ([torch.ones(1), "sum"], {}, "reduce got a str as root; wanted ReduceOptions, or root, op, timeout"),
        ([torch.ones(1), 0, dist.ReduceOp.SUM, PATIENCE, 1], {}, "after its tensors; wanted ReduceOptions, or root"),
        ([torch.ones(1)], {"tensor": torch.ones(1)}, "reduce got the argument 'tensor' twice"),
        ([torch.ones(1), 0], {"root": 0}, "reduce got the argument 'root' twice"),
        ([torch.ones(1)], {"codec": "int8"}, "reduce got the argument 'codec'; wanted ReduceOptions, or root"),
        ([torch.ones(1), c10d.ReduceOptions(), 0], {}, "reduce got ReduceOptions and more arguments"),
        ([torch.ones(1)], {"opts": 3}, "reduce got opts of type int; wanted ReduceOptions"),
    ],
)
def test_other_arguments_are_refused(given: list[Any], named: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Bare().reduce(*given, **named)
