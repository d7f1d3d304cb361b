"""The compiled loop over real sockets must agree with the reference, bit for bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from collectives.engine import reference
from collectives.engine.runner import Engine
from collectives.schedule.op import FLOATS, ITEM_SIZE, REDUCTIONS, OpSpec
from tests.collectives.engine.cases import Bytes, buffers, specs, values
from tests.collectives.engine.group import engines, on_all
from tests.collectives.engine.test_reference import COLLECTIVES, layouts

SMALL = {"slice_bytes": 1024, "window_bytes": 8192}
COUNTS = (0, 1, 3, 64, 100, 10007)


def agree(group: list[Engine], hosts: list[str], all_specs: list[OpSpec], sources: list[Bytes], targets: list[Bytes]):
    """Run an op on the engines and on the reference; the targets must be equal. Inputs must be untouched."""
    wanted = [target.copy() for target in targets]
    reference.run([layout.table for layout in layouts(all_specs, hosts)], sources, wanted)
    kept = [source.copy() for source in sources]
    on_all(
        len(group),
        lambda rank: group[rank].run(all_specs[rank], sources[rank].ctypes.data, targets[rank].ctypes.data),
    )
    for rank in range(len(group)):
        np.testing.assert_array_equal(targets[rank], wanted[rank], f"rank {rank}: {all_specs[rank]}")
        np.testing.assert_array_equal(sources[rank], kept[rank])


def hosts_of(size: int) -> list[str]:
    return [f"host-{rank // 2}" for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, *(pytest.param(size, marks=pytest.mark.slow) for size in (6, 7, 8))])
def test_every_collective_at_awkward_sizes(size: int) -> None:
    rng = np.random.default_rng(size)
    with engines(hosts_of(size), **SMALL) as group:
        for collective, count in itertools.product(COLLECTIVES, COUNTS):
            all_specs = specs(rng, collective, "float32", "sum", count, size)
            parts = buffers(rng, all_specs)
            agree(group, hosts_of(size), all_specs, parts.sources, parts.targets)


def test_every_dtype_and_reduction() -> None:
    rng, size = np.random.default_rng(0), 4
    with engines(hosts_of(size), **SMALL) as group:
        for dtype, reduction in itertools.product(ITEM_SIZE, REDUCTIONS):
            if (dtype in FLOATS and reduction in ("band", "bor", "bxor")) or (dtype, reduction) == ("bool", "avg"):
                continue
            for collective in ("all_reduce", "reduce_scatter"):
                all_specs = specs(rng, collective, dtype, reduction, 1501, size)
                parts = buffers(rng, all_specs)
                agree(group, hosts_of(size), all_specs, parts.sources, parts.targets)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("reduction", ["sum", "min", "max", "product", "avg"])
def test_nan_and_infinity_stay_visible(dtype: str, reduction: str) -> None:
    """Every pairing of ordinary and special values; a NaN comes out where one went in."""
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -2.0, 6e-8, 65504.0])
    a, b = (side.ravel() for side in np.meshgrid(special, special))
    spec = OpSpec("all_reduce", dtype, reduction, None, (len(a),))
    with np.errstate(over="ignore"):
        sources = [encode(side, dtype) for side in (a, b)]
    targets = [np.zeros_like(source) for source in sources]
    wanted = [target.copy() for target in targets]
    reference.run([layout.table for layout in layouts([spec] * 2, hosts_of(2))], sources, wanted)
    with engines(hosts_of(2)) as group:
        on_all(2, lambda rank: group[rank].run(spec, sources[rank].ctypes.data, targets[rank].ctypes.data))
    got, expected = decode(targets[0], dtype), decode(wanted[0], dtype)
    np.testing.assert_array_equal(got, expected)
    assert np.isnan(got[np.isnan(a) | np.isnan(b)]).all()
    np.testing.assert_array_equal(targets[0], targets[1])


def encode(numbers: np.ndarray, dtype: str) -> Bytes:
    if dtype == "bfloat16":
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return numbers.astype(dtype).view(np.uint8)


def decode(data: Bytes, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(dtype)


def test_several_streams_and_large_slices() -> None:
    """More slices than a socket holds, on three connections for each pair, in place."""
    rng, size = np.random.default_rng(1), 3
    spec = OpSpec("all_reduce", "float32", "sum", None, (1_000_003,))
    sources = [values(rng, "float32", 1_000_003) for _ in range(size)]
    wanted = [np.zeros_like(source) for source in sources]
    reference.run(
        [layout.table for layout in layouts([spec] * size, hosts_of(size), 1 << 17, 1 << 30)], sources, wanted
    )
    with engines(hosts_of(size), streams=3, window_bytes=1 << 20) as group:

        def drive(rank: int) -> None:
            for _ in range(3):
                value = sources[rank].copy()
                group[rank].run(spec, value.ctypes.data, value.ctypes.data)
                np.testing.assert_array_equal(value, wanted[rank])

        on_all(size, drive)


def test_ops_queue_up_and_finish_in_order() -> None:
    """Fifty ops handed over at once, of which the last changes the result of all before."""
    size = 3
    with engines(hosts_of(size), **SMALL) as group:

        def drive(rank: int) -> np.ndarray:
            value, finished = np.full(700, rank + 1.0, np.float32), []
            spec = OpSpec("all_reduce", "float32", "max", None, (700,))
            for number in range(50):
                group[rank].start(
                    spec, value.ctypes.data, value.ctypes.data, lambda e, n=number: finished.append((n, e))
                )
            group[rank].run(OpSpec("all_reduce", "float32", "sum", None, (700,)), value.ctypes.data, value.ctypes.data)
            assert finished == [(number, None) for number in range(50)]
            return value

        for value in on_all(size, drive):
            np.testing.assert_array_equal(value, np.full(700, 9.0, np.float32))


@pytest.mark.parametrize("streams", [1, 3])
def test_many_ops_without_a_pause_between_them(streams: int) -> None:
    """No barrier: a rank runs ahead by an op, so headers of later ops arrive early, on any of the streams."""
    rng, size, ops = np.random.default_rng(streams), 4, 150
    cases, results = [], []
    for _ in range(ops):
        collective = str(rng.choice(COLLECTIVES))
        dtype = str(rng.choice(["float32", "bfloat16", "int64", "uint8"]))
        all_specs = specs(rng, collective, dtype, "sum", int(rng.choice([0, 1, 700, 9000])), size)
        parts = buffers(rng, all_specs)
        wanted = [target.copy() for target in parts.targets]
        reference.run([layout.table for layout in layouts(all_specs, hosts_of(size))], parts.sources, wanted)
        cases.append((all_specs, parts))
        results.append(wanted)
    with engines(hosts_of(size), streams=streams, **SMALL) as group:

        def drive(rank: int) -> None:
            for all_specs, parts in cases:
                source, target = parts.sources[rank].ctypes.data, parts.targets[rank].ctypes.data
                group[rank].run(all_specs[rank], source, target)

        on_all(size, drive)
    for (all_specs, parts), wanted in zip(cases, results, strict=True):
        for rank in range(size):
            np.testing.assert_array_equal(parts.targets[rank], wanted[rank], f"rank {rank}: {all_specs[rank]}")
