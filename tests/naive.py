"""What every collective means, in numpy, as obviously as can be. `given[r]` is always what rank r puts in.

bfloat16 has no numpy type: it is held in float32 arrays whose values bfloat16 can hold. 16-bit floats are reduced as
float32 and rounded once, at the end. Integers wrap around; their average is the wrapped sum divided, toward zero.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

Array = np.ndarray

FLOATS = ("float32", "float64", "bfloat16", "float16")
INTEGERS = ("int8", "uint8", "int16", "int32", "int64")
DTYPES = (*FLOATS, *INTEGERS, "bool")


def reductions_of(dtype: str) -> tuple[str, ...]:
    """The reductions that a dtype has."""
    arithmetic = ("sum", "avg", "min", "max", "product")
    if dtype in FLOATS:
        return arithmetic
    return (*(op for op in arithmetic if dtype != "bool" or op != "avg"), "band", "bor", "bxor")


def numpy_dtype(dtype: str) -> np.dtype:
    return np.dtype("float32" if dtype == "bfloat16" else dtype)


def round_to_bfloat16(values: Array) -> Array:
    """float32 rounded to the nearest value that bfloat16 can hold, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def fold(given: Sequence[Array], op: str, dtype: str) -> Array:
    """The reduction of all ranks' arrays."""
    if dtype == "bool":
        pairwise = {"sum": np.logical_or, "max": np.logical_or, "bor": np.logical_or, "product": np.logical_and,
                    "min": np.logical_and, "band": np.logical_and, "bxor": np.logical_xor}[op]  # fmt: skip
        return functools.reduce(pairwise, given)
    pairwise = {"sum": np.add, "avg": np.add, "min": np.minimum, "max": np.maximum, "product": np.multiply,
                "band": np.bitwise_and, "bor": np.bitwise_or, "bxor": np.bitwise_xor}[op]  # fmt: skip
    wide = [each.astype(np.float32) if dtype in ("bfloat16", "float16") else each for each in given]
    with np.errstate(over="ignore"):
        folded = functools.reduce(pairwise, wide)
    if op == "avg" and dtype in FLOATS:
        folded = folded / folded.dtype.type(len(given))
    elif op == "avg":
        floor = folded // len(given)
        folded = floor + ((folded < 0) & (floor * len(given) != folded)).astype(dtype)
    if dtype == "bfloat16":
        return round_to_bfloat16(folded)
    with np.errstate(over="ignore"):
        return folded.astype(numpy_dtype(dtype))


def all_reduce(given: Sequence[Array], op: str, dtype: str) -> list[Array]:
    return [fold(given, op, dtype)] * len(given)


def reduce(given: Sequence[Array], op: str, dtype: str, root: int) -> list[Array]:
    return [fold(given, op, dtype) if rank == root else own for rank, own in enumerate(given)]


def broadcast(given: Sequence[Array], root: int) -> list[Array]:
    return [given[root]] * len(given)


def all_gather(given: Sequence[Array]) -> list[list[Array]]:
    return [list(given)] * len(given)


def gather(given: Sequence[Array], root: int) -> list[list[Array] | None]:
    return [list(given) if rank == root else None for rank in range(len(given))]


def scatter(chunks: Sequence[Array]) -> list[Array]:
    """``chunks`` are what the root holds, one for each rank."""
    return list(chunks)


def reduce_scatter(given: Sequence[Sequence[Array]], op: str, dtype: str) -> list[Array]:
    """``given[r][j]`` is rank r's contribution to rank j's chunk."""
    return [fold([chunks[rank] for chunks in given], op, dtype) for rank in range(len(given))]


def all_to_all(given: Sequence[Sequence[Array]]) -> list[list[Array]]:
    """``given[r][j]`` goes from rank r to rank j."""
    return [[chunks[rank] for chunks in given] for rank in range(len(given))]


def values(dtype: str, count: int, rng: np.random.Generator) -> Array:
    """Numbers whose sums, products and averages over a few ranks are exact, so that the oracle can be met exactly.

    Floats are whole numbers from -8 to 8: over up to 8 ranks, no sum or product leaves float32's 24 bits.
    """
    if dtype == "bool":
        return rng.integers(0, 2, count).astype(bool)
    if dtype in INTEGERS:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, count, dtype=dtype, endpoint=True)
    return rng.integers(-8, 8, count, endpoint=True).astype(numpy_dtype(dtype))
