"""Collectives on tensors whose correct results are known: set the input, call, count wrong elements.

Rank r holds at position i of the message

    value(r, i) = 1 + r mod k + h(i)        with h(i) = a hash of i, from 0 to spread - 1

and the sum over all n ranks is n (1 + h(i)) + sum_r (r mod k). All of these are whole numbers that the dtype holds
exactly, in whatever order they are added. A missing or duplicate contribution changes the sum, because values are at
least 1; one of a wrong rank does, because values of ranks differ; one of a wrong position does, because h differs. Two
positions have the same h once in a million for float32, and several times in a hundred for 16-bit types, so a misplaced
slice is always noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from collectives.backend.c10d import dist
from collectives.backend.process_group import NarrowgaugeGroup
from collectives.schedule.codec import CODECS
from collectives.schedule.specification import SPECIFICATIONS

EXACT = {"float32": 2**24, "float16": 2**11, "bfloat16": 2**8}  # whole numbers up to this are exact
GOLDEN = 2654435761  # 2**32 over the golden ratio: consecutive multiples are spread evenly modulo 2**32 (Knuth)
BLOCK = 1 << 20
# torch renamed them after 2.9.
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
UNWRITTEN = -1.0  # no correct value is negative


class Pattern:
    """The values above, for a dtype of `EXACT` and a number of ranks.

    With more than 85 ranks sums of bfloat16 are not exact; they are compared with the exact sum, rounded.
    """

    def __init__(self, dtype: str, size: int) -> None:
        self.dtype: torch.dtype = getattr(torch, dtype)
        self._size = size
        self._kinds = max(2, min(size, EXACT[dtype] // (2 * size)))
        self._spread = max(2, EXACT[dtype] // size - self._kinds)
        self._of_ranks = sum(rank % self._kinds for rank in range(size))

    def fill(self, tensor: Tensor, rank: int, first: int = 0) -> None:
        """Write the values of a rank, from position `first` on."""
        for start, block in _blocks(tensor):
            block.copy_(1 + rank % self._kinds + self._hash(first + start, len(block)))

    def wrong(self, tensor: Tensor, rank: int | None, first: int = 0) -> int:
        """How many elements of `tensor` differ from the values of a rank (None: the sums) from position `first` on."""
        found = 0
        for start, block in _blocks(tensor):
            hashed = self._hash(first + start, len(block))
            sums = self._size * (1 + hashed) + self._of_ranks
            wanted = sums if rank is None else 1 + rank % self._kinds + hashed
            found += int((block != wanted.to(self.dtype)).sum())
        return found

    def mean_of_ranks(self) -> float:
        """The average over ranks minus rank 0's values."""
        return self._of_ranks / self._size

    def _hash(self, start: int, count: int) -> Tensor:
        position = torch.arange(start, start + count, dtype=torch.int64)
        return (position * GOLDEN % 2**32 >> 8) % self._spread


def _blocks(tensor: Tensor) -> list[tuple[int, Tensor]]:
    """Parts of the tensor, each with its first position; small, because their int64 positions take memory, too."""
    starts = range(0, len(tensor), BLOCK)
    return [(start, tensor[start : start + BLOCK]) for start in starts]


def _chunks(tensor: Tensor, size: int) -> list[tuple[int, Tensor]]:
    """Each rank with its chunk."""
    return list(enumerate(tensor.view(size, -1)))


@dataclass(frozen=True)
class Trial:
    """One collective with one size.

    Attributes:
        num_bytes: of the message, as nccl-tests counts it.
        inputs, outputs: the tensors; equal where the collective works in place.
        set_input: write the values into `inputs`.
        call: run it on a group.
        wrong: how many elements of this rank's result are wrong.
        set_rest: see `rest`.
    """

    num_bytes: int
    inputs: Tensor
    outputs: Tensor
    set_input: Callable[[], None]
    call: Callable[[Any], object]
    wrong: Callable[[], int]
    set_rest: Callable[[], None] | None = None

    def fill(self) -> None:
        """Set the input; an output element that the call does not write then counts as wrong."""
        self.outputs.fill_(UNWRITTEN)
        self.set_input()

    def rest(self) -> None:
        """Set an input that can be reduced in place many times without overflow: zeros, unless `set_rest` is given."""
        if self.set_rest is not None:
            self.set_rest()
        else:
            self.inputs.zero_()


def trial_of(collective: str, num_bytes: int, dtype: str, codec: str = "none") -> Trial:
    """A trial for this rank of the default group, of about `num_bytes` bytes: whole elements, equal chunks."""
    rank, size = dist.get_rank(), dist.get_world_size()
    pattern = Pattern(dtype, size)
    count = max(1, num_bytes // pattern.dtype.itemsize)
    chunk = max(1, count // size)
    if codec != "none":
        return _coded_all_reduce(pattern, rank, size, count, codec)
    build = {
        "all_reduce": _all_reduce,
        "reduce": _reduce,
        "broadcast": _broadcast,
        "all_gather": _all_gather,
        "reduce_scatter": _reduce_scatter,
        "all_to_all": _all_to_all,
    }[collective]
    return build(pattern, rank, size, chunk if SPECIFICATIONS[collective].chunked else count)


def _all_reduce(pattern: Pattern, rank: int, size: int, count: int) -> Trial:
    whole = torch.empty(count, dtype=pattern.dtype)
    return Trial(
        whole.nbytes, whole, whole,
        set_input=lambda: pattern.fill(whole, rank),
        call=lambda group: dist.all_reduce(whole, group=group),
        wrong=lambda: pattern.wrong(whole, None),
    )  # fmt: skip


def _coded_all_reduce(pattern: Pattern, rank: int, size: int, count: int, codec: str) -> Trial:
    """The average with a codec on our group, the plain sum on others, each in a tensor of its own.

    An element of the average is wrong if its error exceeds that of two encodings, one on the way up and one on the way
    down. Timed calls average random numbers: zeros would be encoded faster.
    """
    whole, ours = torch.empty(count, dtype=pattern.dtype), torch.empty(count, dtype=pattern.dtype)
    last: list[bool] = [False]
    tolerance = 2.02 * CODECS[codec].largest_error * EXACT["float32"] / size

    def fill() -> None:
        pattern.fill(whole, rank)
        ours.copy_(whole)

    def call(group: Any) -> None:
        last[0] = isinstance(group, NarrowgaugeGroup)
        if last[0]:
            group.all_reduce_coded(ours, "avg", codec, async_op=False)
        else:
            dist.all_reduce(whole, group=group)

    def wrong() -> int:
        if not last[0]:
            return pattern.wrong(whole, None)
        exact = torch.empty(count, dtype=torch.float64)
        pattern.fill(exact, 0)
        exact += pattern.mean_of_ranks()
        return int((~((ours - exact).abs() <= tolerance)).sum())

    def rest() -> None:
        whole.zero_()
        ours.normal_(generator=torch.Generator().manual_seed(rank))

    return Trial(whole.nbytes, whole, ours, set_input=fill, call=call, wrong=wrong, set_rest=rest)


def _reduce(pattern: Pattern, rank: int, size: int, count: int) -> Trial:
    whole = torch.empty(count, dtype=pattern.dtype)
    return Trial(
        whole.nbytes, whole, whole,
        set_input=lambda: pattern.fill(whole, rank),
        call=lambda group: dist.reduce(whole, 0, group=group),
        wrong=lambda: pattern.wrong(whole, None) if rank == 0 else 0,
    )  # fmt: skip


def _broadcast(pattern: Pattern, rank: int, size: int, count: int) -> Trial:
    whole = torch.empty(count, dtype=pattern.dtype)
    return Trial(
        whole.nbytes, whole, whole,
        set_input=lambda: pattern.fill(whole, rank),
        call=lambda group: dist.broadcast(whole, 0, group=group),
        wrong=lambda: pattern.wrong(whole, 0),
    )  # fmt: skip


def _all_gather(pattern: Pattern, rank: int, size: int, chunk: int) -> Trial:
    part, gathered = torch.empty(chunk, dtype=pattern.dtype), torch.empty(chunk * size, dtype=pattern.dtype)
    return Trial(
        gathered.nbytes, part, gathered,
        set_input=lambda: pattern.fill(part, rank, first=rank * chunk),
        call=lambda group: all_gather_single(gathered, part, group=group),
        wrong=lambda: sum(
            [pattern.wrong(each, source, first=source * chunk) for source, each in _chunks(gathered, size)]
        ),
    )  # fmt: skip


def _reduce_scatter(pattern: Pattern, rank: int, size: int, chunk: int) -> Trial:
    whole, part = torch.empty(chunk * size, dtype=pattern.dtype), torch.empty(chunk, dtype=pattern.dtype)
    return Trial(
        whole.nbytes, whole, part,
        set_input=lambda: pattern.fill(whole, rank),
        call=lambda group: reduce_scatter_single(part, whole, group=group),
        wrong=lambda: pattern.wrong(part, None, first=rank * chunk),
    )  # fmt: skip


def _all_to_all(pattern: Pattern, rank: int, size: int, chunk: int) -> Trial:
    """Positions run through the messages of all ranks, so that a chunk of the wrong sender differs everywhere."""
    sent, received = (torch.empty(chunk * size, dtype=pattern.dtype) for _ in range(2))
    return Trial(
        sent.nbytes, sent, received,
        set_input=lambda: pattern.fill(sent, rank, first=rank * len(sent)),
        call=lambda group: dist.all_to_all_single(received, sent, group=group),
        wrong=lambda: sum(
            [
                pattern.wrong(each, source, first=source * len(sent) + rank * chunk)
                for source, each in _chunks(received, size)
            ]
        ),
    )  # fmt: skip
