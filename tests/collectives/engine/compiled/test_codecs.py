"""Codecs: kernels against plain numpy, engines against the reference bit for bit, and what they do to numbers."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from collectives.engine import reference, table_builder
from collectives.engine.compiled import codecs, kernels, table
from collectives.engine.runner import Engine
from collectives.errors import UsageError
from collectives.planning.planner import plan, with_codec
from collectives.schedule.codec import CODECS
from collectives.schedule.op import OpSpec
from collectives.topology import Host, Pair, Site, Topology
from tests.collectives.engine.group import engines, on_all
from tests.paths import REPOSITORY

LOSSY = ("bf16", "int8", "int4")
SMALL = {"slice_bytes": 1024, "window_bytes": 8192}
FARMS = {
    "flat": list("abcd"),
    "pairs": list("aabbcc"),
    "uneven": list("aaabc"),
    "one host": list("aaa"),
    "two": list("ab"),
}

FAST, SLOW = 1e9, 1e8
NARROW = {
    "one slow host": Topology(
        (*(Host(name, (i,), FAST, FAST) for i, name in enumerate("abc")), Host("d", (3,), SLOW, SLOW))
    ),
    "pairs": Topology((Host("a", (0, 1), FAST, FAST), Host("b", (2, 3), SLOW, SLOW), Host("c", (4, 5), FAST, FAST))),
    "a line": Topology(
        tuple(Host(name, (i,), FAST, FAST) for i, name in enumerate("abcd")),
        pairs=tuple(
            Pair(a, b, {1: SLOW if "d" in (a, b) else FAST}.get(abs(ord(a) - ord(b)), 0.0))
            for a in "abcd" for b in "abcd" if a != b
        ),
    ),
    "a line of five": Topology(
        tuple(Host(name, (i,), FAST, FAST) for i, name in enumerate("abcde")),
        pairs=tuple(
            Pair(a, b, {1: SLOW if a in "ae" or b in "ae" else FAST}.get(abs(ord(a) - ord(b)), 0.0))
            for a in "abcde" for b in "abcde" if a != b
        ),
    ),
    "one slow pair": Topology(
        tuple(Host(name, (i,), FAST, FAST, latency_s=0.0) for i, name in enumerate("abcd")),
        pairs=(Pair("a", "b", SLOW), Pair("b", "a", SLOW)),
    ),
    "two sites": Topology(
        tuple(Host(name, (i,), FAST, FAST) for i, name in enumerate("abcd")),
        (Site("x", ("a", "b"), SLOW, SLOW), Site("y", ("c", "d"), SLOW, SLOW)),
    ),
    "slow up": Topology(tuple(Host(name, (i,), SLOW if name == "a" else FAST, FAST) for i, name in enumerate("abc"))),
}  # fmt: skip


def round_trip(codec: str, values: np.ndarray, residual: np.ndarray | None = None, divisor: int = 1) -> np.ndarray:
    """Through the compiled kernels."""
    values = np.ascontiguousarray(values, np.float32)
    code = np.zeros(CODECS[codec].num_bytes(len(values)), np.uint8)
    decoded, again = np.zeros_like(values), np.zeros_like(values)
    work, f = np.zeros(codecs.WORK_BYTES, np.uint8), np.zeros(codecs.CODEC_FIELDS, np.int64)
    f[codecs.C_CODEC], f[codecs.C_COUNT], f[codecs.C_VALUES] = CODECS[codec].code, len(values), values.ctypes.data
    f[codecs.C_CODE], f[codecs.C_DIVISOR], f[codecs.C_WORK] = code.ctypes.data, divisor, work.ctypes.data
    f[codecs.C_RESIDUAL] = 0 if residual is None else residual.ctypes.data
    f[codecs.C_DECODED] = decoded.ctypes.data
    ctypes.CFUNCTYPE(None, ctypes.c_int64)(codecs.encode_address())(f.ctypes.data)
    f[codecs.C_VALUES] = again.ctypes.data
    ctypes.CFUNCTYPE(None, ctypes.c_int64)(codecs.decode_address())(f.ctypes.data)
    np.testing.assert_array_equal(decoded.view(np.uint32), again.view(np.uint32))
    return decoded


def awkward(count: int, seed: int = 0) -> np.ndarray:
    """Of many magnitudes, some of them zero, block by block, the extremes included."""
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.integers(-38, 37, -(-count // 64)).repeat(64)[:count]
    return (rng.standard_normal(count) * scales * (rng.random(count) > 0.1)).astype(np.float32)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1000, 64 * 16 + 1, 64 * 500])
def test_kernels_agree_with_numpy(codec: str, count: int) -> None:
    values = awkward(count)
    decoded = round_trip(codec, values)
    wanted = reference.coded(CODECS[codec].code, values)
    np.testing.assert_array_equal(decoded.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("codec", LOSSY)
def test_what_was_decoded_encodes_to_itself(codec: str) -> None:
    decoded = round_trip(codec, awkward(64 * 2000, seed=1))
    np.testing.assert_array_equal(round_trip(codec, decoded).view(np.uint32), decoded.view(np.uint32))


@pytest.mark.parametrize("codec", LOSSY)
def test_no_element_is_off_by_more_than_the_codec_says(codec: str) -> None:
    values = np.random.default_rng(2).standard_normal(64 * 100).astype(np.float32).reshape(-1, 64)
    decoded = round_trip(codec, values.ravel()).reshape(-1, 64)
    largest = np.abs(values).max(axis=1, keepdims=True)
    assert (np.abs(decoded - values) <= CODECS[codec].largest_error * largest).all()
    assert np.abs(decoded - values).max() > 0


@pytest.mark.parametrize("codec", LOSSY)
def test_zero_stays_zero_and_what_is_not_finite_stays_so(codec: str) -> None:
    values = np.ones(256, np.float32)
    values[::3] = 0.0
    values[64:128][::3], values[70], values[130], values[200] = 0.0, np.nan, np.inf, -np.inf
    decoded = round_trip(codec, values)
    assert (decoded[:64][values[:64] == 0] == 0).all()
    assert not np.isfinite(decoded[[70, 130, 200]]).any()
    assert np.isfinite(decoded[:64]).all()


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("divisor", [1, 3, 4])
@pytest.mark.parametrize("count", [777, 64 * 33 + 5])
def test_the_residual_is_what_was_lost(codec: str, count: int, divisor: int) -> None:
    rng = np.random.default_rng(3)
    values, residual = rng.standard_normal((2, count)).astype(np.float32)
    before = residual.copy()
    decoded = round_trip(codec, values, residual, divisor)
    x = (values + before) / np.float32(divisor)
    np.testing.assert_array_equal(decoded, reference.coded(CODECS[codec].code, x))
    np.testing.assert_array_equal(residual, (x - decoded) * np.float32(divisor))


def test_a_codec_without_a_branch_is_no_int4() -> None:
    program = (
        "from dataclasses import replace\n"
        "from collectives.schedule.codec import CODECS\n"
        "CODECS['int2'] = replace(CODECS['int4'], name='int2', code=4)\n"
        "import collectives.engine.compiled.codecs\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "AssertionError: a codec without a branch in this file"


def tables(group: list[Engine], spec: OpSpec, sizes: dict[str, int]) -> list[table.Table]:
    topology = group[0].topology
    forest = with_codec(plan(topology, spec.collective, spec.num_bytes, spec.root), spec.codec).forest
    shared, narrow = [i for i, host in enumerate(topology.hosts) if len(host.ranks) > 1], topology.narrow_between
    return [
        table_builder.build(
            forest, spec, rank, topology.homes, **sizes, shared_memory=shared, narrow_between=narrow
        ).table
        for rank in range(len(group))
    ]


@pytest.mark.parametrize("farm", FARMS)
@pytest.mark.parametrize("codec", LOSSY)
def test_engines_agree_with_the_reference(farm: str, codec: str) -> None:
    agree(FARMS[farm], codec)


@pytest.mark.parametrize("codec", LOSSY)
def test_engines_agree_with_the_reference_on_slices_of_several_chunks(codec: str, tmp_path: Path) -> None:
    """A fold decodes chunk by chunk; the last slice ends in the middle of one, and of a block."""
    sizes = {"slice_bytes": 4 * 3 * kernels.CHUNK, "window_bytes": 128 * kernels.CHUNK}
    counts = (4 * 50 * kernels.CHUNK + 333,)
    agree(list("aabbcc"), codec, counts, sizes)
    file = tmp_path / "topology.json"
    file.write_text(NARROW["two sites"].to_json())
    agree(list("abcd"), f"narrow-{codec}", counts, sizes, file)


@pytest.mark.parametrize("farm", NARROW)
@pytest.mark.parametrize("codec", LOSSY)
def test_engines_agree_with_the_reference_on_narrow_links(farm: str, codec: str, tmp_path: Path) -> None:
    hosts, file = [host.name for host in NARROW[farm].hosts for _ in host.ranks], tmp_path / "topology.json"
    file.write_text(NARROW[farm].to_json())
    agree(hosts, f"narrow-{codec}", topology=file)


def test_only_narrow_links_round() -> None:
    """What fast hosts contribute arrives as it is, and the result is rounded once."""
    count, rng = 40_000, np.random.default_rng(7)
    spec = OpSpec("all_reduce", "float32", "sum", None, (count,), "narrow-int8")
    topology = NARROW["one slow host"]
    forest = with_codec(plan(topology, "all_reduce", 4 * count), spec.codec).forest
    tables = [
        table_builder.build(forest, spec, rank, topology.homes, **SMALL, narrow_between=topology.narrow_between).table
        for rank in range(4)
    ]
    edges = {(rank, int(edge["peer"])): int(edge["coded"]) for rank in range(4) for edge in tables[rank].edges}
    assert edges == {(a, b): int(3 in (a, b)) for a, b in edges}
    assert all((tables[rank].trees["coded_parent"] == 0).any() for rank in range(3))
    raw = [rng.standard_normal(count).astype(np.float32).view(np.uint8) for _ in range(4)]
    results = [np.zeros(4 * count, np.uint8) for _ in range(4)]
    residuals = [np.zeros(count, np.float32) for _ in range(4)]
    reference.run(tables, raw, results, residuals=residuals)
    rounded = [int((residual != 0).sum()) for residual in residuals]
    assert rounded[3] > 0.95 * count
    assert sum(rounded[:3]) + rounded[3] < 2.1 * count, (
        "each element once as a result, and rank 3's where it is no root"
    )


def agree(
    hosts: list[str], codec: str, counts: tuple[int, ...] = (1, 63, 300, 10_007, 30_000),
    sizes: dict[str, int] = SMALL, topology: Path | None = None,
) -> None:  # fmt: skip
    rng = np.random.default_rng(4)
    with engines(hosts, **sizes, topology=None if topology is None else str(topology)) as group:
        for count, reduction in zip(counts, itertools.cycle(("sum", "avg")), strict=False):
            spec = OpSpec("all_reduce", "float32", reduction, None, (count,), codec)
            residuals = [np.zeros(count, np.float32) for _ in hosts]
            wanted_residuals = [np.zeros(count, np.float32) for _ in hosts]
            for _ in range(3):
                sources = [rng.standard_normal(count).astype(np.float32) for _ in hosts]
                wanted = [np.zeros(4 * count, np.uint8) for _ in hosts]
                raw = [source.view(np.uint8) for source in sources]
                reference.run(tables(group, spec, sizes), raw, wanted, residuals=wanted_residuals)
                run_coded(group, spec, sources, residuals)
                for rank in range(len(hosts)):
                    np.testing.assert_array_equal(sources[rank].view(np.uint8), wanted[rank], f"{rank} {spec}")
                    np.testing.assert_array_equal(residuals[rank], wanted_residuals[rank], f"{rank} {spec}")
                    np.testing.assert_array_equal(sources[rank], sources[0])


def run_coded(group: list[Engine], spec: OpSpec, values: list[np.ndarray], residuals: list[np.ndarray]) -> None:
    """In place, on all ranks."""

    def drive(rank: int) -> None:
        at = values[rank].ctypes.data
        group[rank].run(spec, at, at, None, residuals[rank].ctypes.data)

    on_all(len(group), drive)


def summed(codec: str, sources: list[np.ndarray], steps: int, feedback: bool) -> np.ndarray:
    """The mean over steps of the all-reduce of the same numbers on as many hosts."""
    spec = OpSpec("all_reduce", "float32", "sum", None, sources[0].shape, codec)
    hosts = [f"h{rank}" for rank in range(len(sources))]
    with engines(hosts) as group:

        def drive(rank: int) -> np.ndarray:
            residual, total = np.zeros_like(sources[rank]), np.zeros(sources[rank].shape)
            for _ in range(steps):
                value = sources[rank].copy()
                at = residual.ctypes.data if feedback else 0
                group[rank].run(spec, value.ctypes.data, value.ctypes.data, None, at)
                total += value
            return total / steps

        return on_all(len(sources), drive)[0]


@pytest.mark.parametrize(
    ("codec", "outliers", "limit"), [("int8", 0, 0.01), ("int8", 1e-3, 0.03), ("int4", 0, 0.16), ("bf16", 0, 0.005)]
)
def test_error_of_one_all_reduce_over_eight_hosts(codec: str, outliers: float, limit: float) -> None:
    rng = np.random.default_rng(5)
    sources = [rng.standard_normal(200_000).astype(np.float32) for _ in range(8)]
    for source in sources:
        source[rng.random(source.size) < outliers] *= 20
    exact = np.sum(sources, axis=0, dtype=np.float64)
    error = summed(codec, sources, 1, False) - exact
    assert 0 < np.sqrt((error**2).mean() / (exact**2).mean()) < limit
    assert abs(error.mean()) < 1e-3 * exact.std()


@pytest.mark.parametrize("codec", LOSSY)
def test_with_error_feedback_the_running_mean_converges(codec: str) -> None:
    rng = np.random.default_rng(6)
    sources = [rng.standard_normal(20_000).astype(np.float32) for _ in range(4)]
    exact = np.sum(sources, axis=0, dtype=np.float64)

    def off(steps: int, feedback: bool) -> float:
        return float(np.abs(summed(codec, sources, steps, feedback) - exact).mean())

    once = off(1, True)
    assert off(100, True) < once / 30
    assert off(100, False) == pytest.approx(once)


def test_what_a_codec_cannot_do_is_refused() -> None:
    for spec in (
        OpSpec("all_reduce", "float32", "max", None, (8,), "int8"),
        OpSpec("all_reduce", "int32", "sum", None, (8,), "int8"),
        OpSpec("reduce", "float32", "sum", 0, (8,), "bf16"),
    ):
        with pytest.raises(UsageError, match="codecs are for sums and averages of float32 by all_reduce"):
            spec.check(4, rank=0)
    with pytest.raises(
        UsageError, match="codec is 'int7'; wanted one of none, narrow-bf16, bf16, narrow-int8, int8, narrow-int4, int4"
    ):
        OpSpec("all_reduce", "float32", "sum", None, (8,), "int7").check(4, rank=0)
