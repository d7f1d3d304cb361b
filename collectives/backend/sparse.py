"""All-reduce of sparse tensors, such as gradients of embeddings, by two all-gathers.

    sizes      each rank says how many rows it has, and of what tensor     the caller waits for it
    rows       each rank sends its rows and where they belong              runs like any op
    sum        each rank adds them up                                      `Call.finish`

The second op depends on the first, and ops must start in the same order on all ranks, so the caller waits for the first
even if it has called asynchronously.

All ranks add in the order of the ranks, so all get the same bits. 16-bit floats are added as float32 and rounded once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from collectives.backend import tensors
from collectives.backend.staging import as_bytes, writing_to
from collectives.backend.tensors import Call
from collectives.errors import UsageError

WORDS_BYTES, MAX_SHOWN = 256, 200  # of what a rank says about its tensor; of that, its type and shape
INDEX_BYTES = 8
SUMMED_AS = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.bool: torch.int32}


class SparseAllReduce:
    """One all-reduce of a sparse tensor (layout COO) on this rank.

    Args:
        tensor: gets the sum in the end, coalesced.
        rank, size: of this process in the group.

    Raises:
        UsageError: another reduction than "sum".
    """

    def __init__(self, tensor: Tensor, reduction: str, rank: int, size: int) -> None:
        if reduction != "sum":
            raise UsageError(f"all_reduce of a sparse tensor: got the reduction {reduction}; wanted sum")
        self._tensor, self._rank, self._size = tensor, rank, size
        self._where, self._row = tensor.shape[: tensor.sparse_dim()], tensor.shape[tensor.sparse_dim() :]
        with torch.no_grad():
            own = tensor.detach().coalesce()
            positions = torch.zeros(own._nnz(), dtype=torch.int64)
            for index, length in zip(own.indices().cpu(), self._where, strict=True):
                positions = positions * length + index
            self._own = torch.cat([as_bytes(positions), as_bytes(own.values().cpu().contiguous())])
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = f"{dtype} with {len(self._where)} sparse dimensions, of shape {tuple(tensor.shape)}"
        self._what = shape[:MAX_SHOWN]
        self._said = torch.zeros(size * WORDS_BYTES, dtype=torch.uint8)

    def sizes(self) -> Call:
        """The first op."""
        words = json.dumps([len(self._own), self._what]).encode()
        own = torch.zeros(WORDS_BYTES, dtype=torch.uint8)
        own[: len(words)] = torch.frombuffer(bytearray(words), dtype=torch.uint8)
        call = tensors.all_gather_single(self._said, own, self._rank, self._size)
        return replace(call, spec=replace(call.spec, called="sizes of a sparse all_reduce"))

    def rows(self) -> Call:
        """The second op, after the first.

        Raises:
            UsageError: ranks have tensors of different shapes or dtypes, or another number of sparse dimensions; on
                each rank.
        """
        sizes = []
        for other, words in enumerate(torch.split(self._said, WORDS_BYTES)):
            num_bytes, what = json.loads(bytes(words.tolist()).rstrip(b"\0"))
            if what != self._what:
                raise UsageError(
                    f"all_reduce of a sparse tensor: rank {other} has {what}; rank {self._rank} has {self._what}; "
                    "wanted the same on all ranks"
                )
            sizes.append(num_bytes)
        gathered = [torch.empty(num_bytes, dtype=torch.uint8) for num_bytes in sizes]
        call = tensors.all_gather(gathered, self._own, self._rank, self._size)
        arrived = call.finish

        def finish() -> None:
            if arrived is not None:
                arrived()
            self._add_up(gathered)

        spec = replace(call.spec, called=f"sparse all_reduce sum of {self._what}")
        return replace(call, spec=spec, outputs=[self._tensor], finish=finish)

    def _add_up(self, gathered: Sequence[Tensor]) -> None:
        tensor, dtype = self._tensor, self._tensor.dtype
        row_bytes = INDEX_BYTES + math.prod(self._row) * dtype.itemsize
        with writing_to(tensor):
            positions, values = [], []
            for part in gathered:
                count = len(part) // row_bytes
                positions.append(part[: count * INDEX_BYTES].view(torch.int64))
                # A copy, since a view of another dtype must begin at a multiple of its size.
                values.append(part[count * INDEX_BYTES :].clone().view(dtype).view(count, *self._row))
            occupied = torch.unique(torch.cat(positions))
            total = torch.zeros(len(occupied), *self._row, dtype=SUMMED_AS.get(dtype, dtype))
            for each, rows in zip(positions, values, strict=True):
                at = torch.searchsorted(occupied, each)
                total[at] += rows.to(total.dtype)  # positions of one rank are distinct
            indices = []
            for length in reversed(self._where):
                indices.append(occupied % length)
                occupied = occupied // length
            all_indices = torch.stack(indices[::-1]) if indices else torch.zeros(0, len(total), dtype=torch.int64)
            result = torch.sparse_coo_tensor(
                all_indices, total.to(dtype), tensor.shape, is_coalesced=True, check_invariants=False
            )
            tensor.copy_(result.to(tensor.device))
