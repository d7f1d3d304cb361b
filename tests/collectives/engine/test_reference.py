"""The reference against an oracle that knows nothing of trees: plain numpy on all inputs at once."""

from __future__ import annotations

import random

import numpy as np
import pytest

from collectives.engine import reference, table_builder
from collectives.errors import UsageError
from collectives.planning.planner import plan
from collectives.schedule.op import REDUCTIONS, OpSpec
from collectives.topology import Topology
from tests.collectives.engine.cases import buffers, specs

COLLECTIVES = ("all_reduce", "reduce", "reduce_scatter", "broadcast", "all_gather", "all_to_all")


def layouts(all_specs: list[OpSpec], hosts: list[str], slice_bytes: int = 1024, window_bytes: int = 8192):
    topology = Topology.from_hosts(hosts)
    spec = all_specs[0]
    forest = plan(topology, spec.collective, spec.num_bytes, spec.root).forest
    return [
        table_builder.build(forest, each, rank, topology.homes, slice_bytes=slice_bytes, window_bytes=window_bytes)
        for rank, each in enumerate(all_specs)
    ]


def expected(all_specs: list[OpSpec], sources: list[np.ndarray]) -> list[np.ndarray | None]:
    """What each rank must hold, from all inputs at once, in int64: exact."""
    spec = all_specs[0]
    inputs = [source.view(spec.dtype) for source in sources]
    starts = np.concatenate(([0], np.cumsum(spec.counts)))
    if spec.collective == "broadcast":
        return [inputs[spec.root]] * len(inputs)
    if spec.collective == "all_gather":
        return [np.concatenate(inputs)] * len(inputs)
    if spec.collective == "all_to_all":
        size = len(inputs)
        split = [np.split(inputs[rank], np.cumsum(all_specs[rank].counts[: size - 1])) for rank in range(size)]
        return [np.concatenate([split[other][rank] for other in range(size)]) for rank in range(size)]
    total = np.sum(inputs, axis=0, dtype=np.int64).astype(spec.dtype)
    if spec.collective == "all_reduce":
        return [total] * len(inputs)
    if spec.collective == "reduce":
        return [total if rank == spec.root else None for rank in range(len(inputs))]
    return [total[starts[rank] : starts[rank + 1]] for rank in range(len(inputs))]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 13])
@pytest.mark.parametrize("collective", COLLECTIVES)
def test_agrees_with_oracle(collective: str, size: int) -> None:
    rng = np.random.default_rng(size)
    for count in (0, 1, 3, 64, 100, 10007):
        all_specs = specs(rng, collective, "int32", "sum", count, size)
        parts = buffers(rng, all_specs)
        wanted = expected(all_specs, parts.sources)
        for hosts in (["a"] * size, [f"h{rank // 2}" for rank in range(size)], [f"h{rank}" for rank in range(size)]):
            tables = [layout.table for layout in layouts(all_specs, hosts)]
            targets = [target.copy() for target in parts.targets]
            reference.run(tables, parts.sources, targets, random.Random(count))
            for rank, result in enumerate(wanted):
                if result is not None:
                    np.testing.assert_array_equal(targets[rank].view("int32"), result, f"rank {rank} of {all_specs[0]}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_order_of_arrival_and_place_in_the_message_do_not_change_a_bit(dtype: str) -> None:
    """Move a message by some elements, cut it elsewhere, deliver it in another order: the same bits come out."""
    rng, size, count, shift = np.random.default_rng(7), 6, 3000, 37
    item = 4 if dtype == "float32" else 2
    hosts = ["a", "b", "a", "c", "b", "c"]
    spec = OpSpec("all_reduce", dtype, "sum", None, (count,))
    moved = OpSpec("all_reduce", dtype, "sum", None, (count + shift,))
    sources = buffers(rng, [spec] * size).sources
    results = []
    for each, slice_bytes in ((spec, 1024), (spec, 2048), (moved, 1024)):
        pad = (each.counts[0] - count) * item
        inputs = [np.concatenate([np.zeros(pad, np.uint8), source]) for source in sources]
        targets = [np.zeros_like(inputs[0]) for _ in range(size)]
        tables = [layout.table for layout in layouts([each] * size, hosts, slice_bytes)]
        reference.run(tables, inputs, targets, random.Random(slice_bytes + pad))
        results += [target[pad:].tobytes() for target in targets]
    assert len(set(results)) == 1


def test_sixteen_bits_round_once() -> None:
    """1 + 256 halves of the last place: adding one by one in bfloat16 would lose all of them."""
    size = 5
    spec = OpSpec("all_reduce", "bfloat16", "sum", None, (1,))
    parts = [np.float32(1.0)] + [np.float32(2.0**-9)] * (size - 1)
    sources = [(np.array([part]).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8) for part in parts]
    targets = [np.zeros(2, np.uint8) for _ in range(size)]
    reference.run([layout.table for layout in layouts([spec] * size, ["a"] * size)], sources, targets)
    result = (targets[0].view(np.uint16).astype(np.uint32) << 16).view(np.float32)[0]
    assert result == np.float32(1.0 + 2.0**-7)


def test_fold_order_is_hosts_of_ranks() -> None:
    """Hosts a = {0, 2} and b = {1, 3}: (r0 + r2) + (r1 + r3), whoever is the root."""
    values = [np.float32(x) for x in (1e8, 1.0, -1e8, 3.0)]
    spec = OpSpec("all_reduce", "float32", "sum", None, (1,))
    targets = [np.zeros(4, np.uint8) for _ in values]
    tables = [layout.table for layout in layouts([spec] * 4, ["a", "b", "a", "b"])]
    reference.run(tables, [np.array([value]).view(np.uint8) for value in values], targets, random.Random(1))
    assert [target.view(np.float32)[0] for target in targets] == [np.float32(4.0)] * 4


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (OpSpec("all_reduce", "complex64", "sum", None, (1,)), "dtype complex64"),
        (OpSpec("all_reduce", "float32", "mean", None, (1,)), "reduction 'mean'"),
        (OpSpec("all_reduce", "float32", "bxor", None, (1,)), "bitwise bxor needs integers"),
        (OpSpec("all_reduce", "bool", "avg", None, (1,)), "average of bool"),
        (OpSpec("all_reduce", "float32", None, None, (1,)), "reduction is None"),
        (OpSpec("broadcast", "float32", None, 4, (1,)), "root is 4; this group has ranks 0 to 3"),
        (OpSpec("broadcast", "float32", None, None, (1,)), "root is None"),
        (OpSpec("all_gather", "float32", None, None, (1,)), "wanted 4 numbers"),
        (OpSpec("all_to_all", "float32", None, None, (1, 1, 1, 1, 1, 1, 1, -1)), "at least 0"),
        (OpSpec("all_to_all", "float32", None, None, (1, 1, 1, 1, 1, 1, 1, 2)), "4 bytes for itself, and room for 8"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(spec: OpSpec, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        spec.check(4, rank=3)


def test_every_reduction_has_a_name_in_the_error() -> None:
    with pytest.raises(UsageError, match=", ".join(REDUCTIONS)):
        OpSpec("all_reduce", "float32", "none", None, (1,)).check(2, rank=0)
