"""One op without its buffers. Equal on every rank of the group, except for all-to-all's counts."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Literal

from collectives.errors import UsageError
from collectives.schedule.codec import codec_of
from collectives.schedule.specification import SPECIFICATIONS, Specification

Collective = Literal["all_reduce", "reduce", "reduce_scatter", "broadcast", "all_gather", "all_to_all"]

ITEM_SIZE = {
    "float32": 4,
    "float64": 8,
    "bfloat16": 2,
    "float16": 2,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "bool": 1,
}
REDUCTIONS = ("sum", "avg", "min", "max", "product", "band", "bor", "bxor")
FLOATS = frozenset({"float32", "float64", "bfloat16", "float16"})


@dataclass(frozen=True)
class OpSpec:
    """One collective call without its addresses; the key under which tables are cached.

    Attributes:
        collective: which one.
        dtype: element type by torch's name. Collectives that only move data take "uint8" and byte counts.
        reduction: how contributions are folded; None for collectives that only move data.
        root: the rank that has (broadcast) or gets (reduce) the message; None for other collectives.
        counts: elements. all_reduce, reduce, broadcast: ``(count,)``. reduce_scatter, all_gather: the n chunks of
            the message in rank order, which may differ and may be 0. all_to_all: n that this rank sends, then n that
            it receives; these lie in that order, without gaps, in source and target.
        codec: name of the codec on network links, see `schedule/codec.py`; others than "none" are for sums and averages
            of float32 by all_reduce.
        called: what the caller has called, for messages, where that is no op of its own, such as a barrier. Nothing
            else depends on it.
    """

    collective: Collective
    dtype: str
    reduction: str | None
    root: int | None
    counts: tuple[int, ...]
    codec: str = "none"
    called: str = field(default="", compare=False)

    @property
    def specification(self) -> Specification:
        return SPECIFICATIONS[self.collective]

    @property
    def item_size(self) -> int:
        return ITEM_SIZE[self.dtype]

    @property
    def num_bytes(self) -> int:
        """Message size in bytes, as nccl-tests counts it: the larger of what goes in and what comes out."""
        counts = self.counts
        if self.specification.pairwise:
            half = len(counts) // 2
            return max(sum(counts[:half]), sum(counts[half:])) * self.item_size
        return sum(counts) * self.item_size

    def fingerprint(self) -> int:
        """32 bits that differ when ranks call different ops. All-to-all's counts are each rank's own and left out."""
        counts = () if self.specification.counts_are_private else self.counts
        return zlib.crc32(repr((self.collective, self.dtype, self.reduction, self.root, counts, self.codec)).encode())

    def check(self, size: int, rank: int) -> None:
        """Check that the op is valid on a rank of a group of `size` ranks.

        Raises:
            UsageError: an unknown dtype or codec, a reduction that the dtype lacks, a root outside the group, wrong
                counts.
        """
        codec_of(self.codec)
        if self.codec != "none" and not (
            self.collective == "all_reduce" and self.dtype == "float32" and self.reduction in ("sum", "avg")
        ):
            raise UsageError(f"{self}: codecs are for sums and averages of float32 by all_reduce; use codec none")
        if self.dtype not in ITEM_SIZE:
            raise UsageError(
                f"{self.collective}: dtype {self.dtype} is not supported; use one of {', '.join(ITEM_SIZE)}"
            )
        if (self.reduction is not None) != self.specification.reduces:
            wanted = "one" if self.specification.reduces else "None"
            raise UsageError(f"{self.collective}: reduction is {self.reduction}; wanted {wanted}")
        if self.reduction is not None:
            self._check_reduction(self.reduction)
        if (self.root is not None) != self.specification.rooted:
            wanted = "a rank" if self.specification.rooted else "None"
            raise UsageError(f"{self.collective}: root is {self.root}; wanted {wanted}")
        if self.root is not None and not 0 <= self.root < size:
            raise UsageError(f"{self.collective}: root is {self.root}; this group has ranks 0 to {size - 1}")
        num_counts = self.specification.num_counts(size)
        if len(self.counts) != num_counts or min(self.counts) < 0:
            raise UsageError(f"{self.collective}: counts {self.counts}; wanted {num_counts} numbers of at least 0")
        if self.specification.pairwise and self.counts[rank] != self.counts[size + rank]:
            sent, room = (count * self.item_size for count in (self.counts[rank], self.counts[size + rank]))
            raise UsageError(f"{self}: rank {rank} has {sent} bytes for itself, and room for {room}; wanted the same")

    def _check_reduction(self, reduction: str) -> None:
        if reduction not in REDUCTIONS:
            raise UsageError(f"{self.collective}: reduction {reduction!r}; use one of {', '.join(REDUCTIONS)}")
        if reduction in ("band", "bor", "bxor") and self.dtype in FLOATS:
            raise UsageError(f"{self.collective}: bitwise {reduction} needs integers or bool, got {self.dtype}")
        if reduction == "avg" and self.dtype == "bool":
            raise UsageError(f"{self.collective}: the average of bool is not defined; use sum (or), product (and)")

    def __str__(self) -> str:
        if self.called:
            return self.called
        words = [self.collective, self.reduction or "", f"of {sum(self.counts)} {self.dtype}"]
        if self.root is not None:
            words.append(f"at root {self.root}")
        if self.codec != "none":
            words.append(f"as {self.codec}")
        return " ".join(word for word in words if word)
