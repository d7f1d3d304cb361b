"""Codecs: kernels against plain numpy, engines against the reference bit for bit, and what they do to numbers."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from collectives.codec import CODECS
from collectives.engine import codecs, reference, table
from collectives.engine.op import OpSpec
from collectives.engine.runner import Engine
from collectives.errors import UsageError
from collectives.planner import plan
from tests.collectives.engine.group import engines, on_all

LOSSY = ("bf16", "int8", "int4")
SMALL = {"slice_bytes": 1024, "window_bytes": 8192}
FARMS = {
    "flat": list("abcd"),
    "pairs": list("aabbcc"),
    "uneven": list("aaabc"),
    "one host": list("aaa"),
    "two": list("ab"),
}


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
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1000, 64 * 500])
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
@pytest.mark.parametrize("divisor", [1, 4])
def test_the_residual_is_what_was_lost(codec: str, divisor: int) -> None:
    rng = np.random.default_rng(3)
    values, residual = rng.standard_normal((2, 777)).astype(np.float32)
    before = residual.copy()
    decoded = round_trip(codec, values, residual, divisor)
    x = (values + before) / np.float32(divisor)
    np.testing.assert_array_equal(decoded, reference.coded(CODECS[codec].code, x))
    np.testing.assert_array_equal(residual, (x - decoded) * np.float32(divisor))


def tables(group: list[Engine], spec: OpSpec) -> list[table.Table]:
    topology = group[0].topology
    forest = plan(topology, spec.collective, spec.num_bytes, spec.root).forest
    shared = [index for index, host in enumerate(topology.hosts) if len(host.ranks) > 1]
    return [
        table.build(forest, spec, rank, topology.homes, **SMALL, shared_memory=shared).table
        for rank in range(len(group))
    ]


@pytest.mark.parametrize("farm", FARMS)
@pytest.mark.parametrize("codec", LOSSY)
def test_engines_agree_with_the_reference(farm: str, codec: str) -> None:
    hosts, rng = FARMS[farm], np.random.default_rng(4)
    with engines(hosts, **SMALL) as group:
        for count, reduction in ((1, "sum"), (63, "avg"), (300, "sum"), (10_007, "avg"), (30_000, "sum")):
            spec = OpSpec("all_reduce", "float32", reduction, None, (count,), codec)
            residuals = [np.zeros(count, np.float32) for _ in hosts]
            wanted_residuals = [np.zeros(count, np.float32) for _ in hosts]
            for _ in range(3):
                sources = [rng.standard_normal(count).astype(np.float32) for _ in hosts]
                wanted = [np.zeros(4 * count, np.uint8) for _ in hosts]
                raw = [source.view(np.uint8) for source in sources]
                reference.run(tables(group, spec), raw, wanted, residuals=wanted_residuals)
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
            spec.check(4)
    with pytest.raises(UsageError, match="codec is 'int7'; wanted one of none, bf16, int8, int4"):
        OpSpec("all_reduce", "float32", "sum", None, (8,), "int7").check(4)


def in_blocks(codec: str, numbers: Floats) -> Floats:
    """What one encoding makes of numbers."""
    kind = CODECS[codec]
    return reference.decode(kind, reference.encode(kind, numbers), len(numbers))


def relative_error(got: Floats, exact: Floats) -> float:
    return float(np.sqrt(np.mean((got - exact) ** 2) / np.mean(exact**2)))


@pytest.mark.parametrize(
    ("codec", "plain", "with_outliers"), [("bf16", 4e-3, 4e-3), ("int8", 0.01, 0.03), ("int4", 0.2, 0.4)]
)
def test_errors_of_one_all_reduce_over_eight_ranks(codec: str, plain: float, with_outliers: float) -> None:
    """One in a thousand elements is a hundred times as large. The bias is a thousandth of a deviation at most."""
    rng, count = np.random.default_rng(0), 300_000
    normal = [rng.standard_normal(count).astype(np.float32) for _ in range(8)]
    spiky = [source * np.where(rng.random(count) < 1e-3, 100, 1).astype(np.float32) for source in normal]
    with engines([f"host-{rank}" for rank in range(8)]) as group:
        for sources, most in ((normal, plain), (spiky, with_outliers)):
            exact = np.sum(sources, axis=0, dtype=np.float64)
            got = all_reduce(group, spec_of(codec, count), sources)[3].astype(np.float64)
            assert relative_error(got, exact) <= most
            # The mean of so many errors itself scatters by their deviation over the root of their number.
            deviation = float(np.std(got - exact)) / np.sqrt(count)
            assert abs(np.mean(got - exact)) <= 1e-3 * np.std(exact) + 3 * deviation * (codec == "int4")


@pytest.mark.parametrize("reduction", ["sum", "avg"])
@pytest.mark.parametrize("codec", LOSSY)
def test_with_error_feedback_the_mean_over_steps_becomes_exact(codec: str, reduction: str) -> None:
    """What is lost stays bounded, so the mean's error falls as one over the steps; without feedback it stays."""
    rng, hosts, count, steps = np.random.default_rng(1), ["a", "a", "b", "c"], 5000, 100
    sources = [rng.standard_normal(count).astype(np.float32) for _ in hosts]
    exact = np.sum(sources, axis=0, dtype=np.float64) / (len(hosts) if reduction == "avg" else 1)
    with engines(hosts) as group:
        spec = spec_of(codec, count, reduction)
        without = relative_error(all_reduce(group, spec, sources)[0].astype(np.float64), exact)
        residuals, total = [np.zeros(count, np.float32) for _ in hosts], np.zeros(count)
        for _ in range(steps):
            total += all_reduce(group, spec, sources, residuals)[0]
        assert 0 < relative_error(total / steps, exact) <= 2.5 * without / steps


@pytest.mark.parametrize("codec", LOSSY)
def test_what_is_not_finite_stays_visible_and_does_not_linger(codec: str) -> None:
    hosts, count = ["a", "a", "b", "c"], 1000
    sources = [np.ones(count, np.float32) for _ in hosts]
    for rank, (place, value) in enumerate([(3, np.nan), (200, np.inf), (500, -np.inf), (999, np.float32(3.4e38))]):
        sources[rank][place] = value
    residuals = [np.zeros(count, np.float32) for _ in hosts]
    with engines(hosts, **SMALL) as group:
        got = all_reduce(group, spec_of(codec, count), sources, residuals)
        assert not np.isfinite(got[0][[3, 200, 500, 999]]).any()
        assert np.isfinite(got[0][[100, 300, 400, 600]]).all()  # of other blocks
        for each in got:
            np.testing.assert_array_equal(each, got[0])
        assert all(np.isfinite(residual).all() for residual in residuals)
        ones = [np.ones(count, np.float32) for _ in hosts]
        assert np.isfinite(all_reduce(group, spec_of(codec, count), ones, residuals)[0]).all()


@pytest.mark.parametrize("codec", LOSSY)
def test_zero_stays_zero(codec: str) -> None:
    rng, hosts, count = np.random.default_rng(2), ["a", "b", "c"], 3001
    is_zero = rng.random(count) < 0.5
    is_zero[640:1280] = True  # whole blocks, too
    sources = [np.where(is_zero, 0, rng.standard_normal(count)).astype(np.float32) for _ in hosts]
    residuals = [np.zeros(count, np.float32) for _ in hosts]
    with engines(hosts, **SMALL) as group:
        for _ in range(3):
            got = all_reduce(group, spec_of(codec, count), sources, residuals)[0]
            assert (got[is_zero] == 0).all()
    assert all((residual[is_zero] == 0).all() for residual in residuals)


@pytest.mark.parametrize("codec", LOSSY)
def test_numbers_of_all_magnitudes(codec: str) -> None:
    """Each block at another power of two, down to subnormals and up to where a sum would not be finite any more."""
    rng = np.random.default_rng(3)
    for exponent in range(-149, 127):
        block = (rng.uniform(-1, 1, 64) * 2.0**exponent).astype(np.float32)
        block[7] = 2.0**exponent
        decoded = in_blocks(codec, block)
        if codec == "bf16" and exponent > -118:
            np.testing.assert_allclose(decoded, block, rtol=CODECS[codec].largest_error, atol=2.0**-134)
        elif exponent >= -119:
            assert np.abs(decoded - block).max() <= CODECS[codec].largest_error * 2.0**exponent
        elif codec != "bf16":
            assert not decoded.any()


def test_only_the_network_sees_codes() -> None:
    """Two hosts of three ranks: what crosses sockets is the code of one copy each way, and headers."""
    hosts, count = ["a", "a", "a", "b", "b", "b"], 1_000_000
    with engines(hosts) as group:
        sources = [np.ones(count, np.float32) for _ in hosts]
        assert (all_reduce(group, spec_of("int8", count), sources)[5] == 6).all()
        sent = sum(engine.counters.bytes_sent for engine in group)
    assert 2 * count < sent < 2.2 * count


def test_ranks_of_one_host_lose_nothing() -> None:
    rng, count = np.random.default_rng(4), 5003
    sources = [rng.standard_normal(count).astype(np.float32) for _ in range(3)]
    with engines(["a", "a", "a"]) as group:
        coded = all_reduce(group, spec_of("int4", count), sources)
        np.testing.assert_array_equal(coded[1], all_reduce(group, spec_of("none", count), sources)[1])


def test_ranks_that_differ_in_the_codec_are_told() -> None:
    with engines(["a", "b"]) as group:
        value = [np.ones(100, np.float32) for _ in group]

        def drive(rank: int) -> None:
            at = value[rank].ctypes.data
            group[rank].run(spec_of(("int8", "int4")[rank], 100), at, at)

        errors = errors_of(2, drive)
    assert all(isinstance(error, OpMismatch) for error in errors)
    assert "as int8" in str(errors[0])
    assert "as int4" in str(errors[0])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (OpSpec("all_reduce", "float32", "sum", None, (1,), "int3"), "codec is 'int3'; wanted one of none, bf16"),
        (OpSpec("all_reduce", "int32", "sum", None, (1,), "int8"), "all_reduce sum of int32: codec 'int8' is for"),
        (OpSpec("all_reduce", "bfloat16", "sum", None, (1,), "bf16"), "sum and avg of float32; leave it out here"),
        (OpSpec("all_reduce", "float32", "max", None, (1,), "int8"), "all_reduce max of float32"),
        (OpSpec("broadcast", "uint8", None, 0, (1,), "int8"), "broadcast"),
    ],
)
def test_ops_that_no_codec_goes_with(spec: OpSpec, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        spec.check(2)
