"""Ops with random inputs, and the bytes that each rank puts in and gets out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collectives.schedule.op import OpSpec
from collectives.schedule.specification import SPECIFICATIONS

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Buffers:
    """What each rank hands to an op, by rank. Targets start as bytes that no result has by chance."""

    sources: list[Bytes]
    targets: list[Bytes]


def values(rng: np.random.Generator, dtype: str, count: int) -> Bytes:
    """Random elements of a dtype, as bytes: finite, of both signs, of several magnitudes."""
    if dtype == "bool":
        return rng.integers(0, 2, count).astype(np.uint8)
    if dtype == "bfloat16":
        return (rng.standard_normal(count).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    if dtype.startswith("float"):
        return (rng.standard_normal(count) * 10.0 ** rng.integers(-2, 3, count)).astype(dtype).view(np.uint8)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, count, dtype, endpoint=True).view(np.uint8)


def buffers(rng: np.random.Generator, specs: list[OpSpec]) -> Buffers:
    """Sources and targets for an op given as each rank's spec (all-to-all's differ)."""
    sources, targets = [], []
    for rank, spec in enumerate(specs):
        into, out = sizes(spec, rank)
        sources.append(values(rng, spec.dtype, into))
        targets.append(rng.integers(0, 2, out * spec.item_size).astype(np.uint8))
    return Buffers(sources, targets)


def sizes(spec: OpSpec, rank: int) -> tuple[int, int]:
    """Elements that a rank puts in and gets out."""
    counts = spec.counts
    if spec.collective == "all_to_all":
        return sum(counts[: len(counts) // 2]), sum(counts[len(counts) // 2 :])
    if spec.collective == "reduce_scatter":
        return sum(counts), counts[rank]
    if spec.collective == "all_gather":
        return counts[rank], sum(counts)
    return counts[0], counts[0]


def specs(rng: np.random.Generator, collective: str, dtype: str, reduction: str, count: int, size: int) -> list[OpSpec]:
    """Each rank's spec of one op with about `count` elements; chunks of unequal sizes, some of them empty."""
    root = int(rng.integers(size)) if collective in ("reduce", "broadcast") else None
    chosen = reduction if SPECIFICATIONS[collective].reduces else None
    if collective == "all_to_all":
        matrix = rng.integers(0, count // size + 2, (size, size))
        return [
            OpSpec("all_to_all", dtype, None, None, (*map(int, matrix[rank]), *map(int, matrix[:, rank])))
            for rank in range(size)
        ]
    counts = (count,)
    if collective in ("reduce_scatter", "all_gather"):
        counts = tuple(int(c) for c in rng.integers(0, count // size + 2, size))
    return [OpSpec(collective, dtype, chosen, root, counts)] * size  # type: ignore[arg-type]
