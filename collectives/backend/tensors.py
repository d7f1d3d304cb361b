"""From the tensors of a collective to a `Call` that an executor can execute, and back.

Each function below checks the tensors of one collective and returns a `Call`: an `OpSpec`, plain memory to read and to
write, and what to do with the result. The engine and the Gloo fallback both execute Calls, so the meaning of a
collective is defined here once.

Reductions keep their dtype, except that complex numbers are reduced as pairs of reals. Collectives that only move data
move bytes, so they accept every dense dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from collectives.backend.staging import as_bytes, from_host, is_plain, leaving, let_callers_go_first, room_for, to_host
from collectives.engine.hangs.call_site import CallSite
from collectives.errors import UsageError
from collectives.schedule.op import Collective, OpSpec


@dataclass(slots=True)
class Call:
    """One op with its memory.

    Attributes:
        spec: the op.
        source: plain tensor that the op reads, of `spec.counts` elements in any shape.
        target: plain tensor that the op writes; may be `source`.
        outputs: the caller's tensors, which hold the result after `finish`.
        finish: copies the result from `target` to `outputs`; None if it is there already.
        ready: blocks until the copy into `source` is done; None if the op may start at once.
        residual: of an op with a codec, see `Engine.start`.
        caller: who called, if another thread starts the op later.
    """

    spec: OpSpec
    source: Tensor
    target: Tensor
    outputs: list[Tensor]
    finish: Callable[[], None] | None = None
    ready: Callable[[], None] | None = None
    residual: Tensor | None = None
    caller: CallSite | None = None

    @property
    def num_bytes(self) -> int:
        """Message size on this rank: the larger of what goes in and what comes out."""
        return max(self.source.nbytes, self.target.nbytes)


Done = Callable[[BaseException | None], None]
_BARRIER = OpSpec("all_reduce", "uint8", "max", None, (1,), called="barrier")


class Executor(Protocol):
    """Executes the Calls of one group, in the order in which they come."""

    def run(self, call: Call, timeout_s: float) -> None:
        """Execute the call and return when its target is written.

        Raises:
            UsageError: the executor does not support the call.
            CollectiveError: it failed; the group is broken.
        """

    def start(self, call: Call, done: Done, timeout_s: float) -> None:
        """Begin the call; `done` is called once from another thread, with None or the error.

        Raises:
            UsageError: the executor does not support the call.
            GroupClosed: the group was destroyed.
        """

    def close(self) -> None:
        """Release threads, sockets and shared memory. May be called again."""


def all_reduce(tensor: Tensor, reduction: str) -> Call:
    """Every rank gets the reduction of all ranks' `tensor`, in place."""
    _check_reducible(tensor, reduction)
    host, ready = leaving(tensor)
    numbers = _as_reals(host)
    spec = _all_reduce_spec(numbers.dtype, reduction, numbers.numel())
    return Call(spec, numbers, numbers, [tensor], _back(host, tensor), ready)


def all_reduce_in_chunks(tensor: Tensor, reduction: str, chunk_bytes: int) -> list[Call]:
    """As `all_reduce`, in one op for every `chunk_bytes`, so that copies from and to a device overlap with the network.

    The number of ops depends on the size of the message alone, since it must be the same on ranks whose tensors are in
    host memory.
    """
    if tensor.nbytes <= chunk_bytes:
        return [all_reduce(tensor, reduction)]
    in_order = tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
    whole = tensor if in_order else to_host(tensor)
    chunks = torch.split(whole.detach().view(-1), max(1, chunk_bytes // tensor.element_size()))
    calls = [replace(all_reduce(chunk, reduction), outputs=[]) for chunk in chunks]
    # `whole` is a copy if the tensor is strided: then the chunks are parts of the copy, and all go back at the end.
    back = calls[-1].finish if whole is tensor else _back(whole, tensor)
    return [*calls[:-1], replace(calls[-1], outputs=[tensor], finish=back)]


def all_reduce_coded(tensor: Tensor, reduction: str, codec: str, residual: Tensor | None) -> Call:
    """As `all_reduce`, with a codec on network links.

    Args:
        residual: float32, as many elements as `tensor`, in plain memory; read and written while the op runs.

    Raises:
        UsageError: a residual that does not match.
    """
    if residual is not None and not (
        is_plain(residual) and residual.dtype == torch.float32 and residual.numel() == tensor.numel()
    ):
        raise UsageError(
            f"all_reduce: the residual is {_describe(residual)} on {residual.device}; "
            f"wanted {tensor.numel()} elements of torch.float32 in contiguous memory of the CPU"
        )
    call = all_reduce(tensor, reduction)
    call.spec, call.residual = replace(call.spec, codec=codec), residual
    return call


@functools.lru_cache(1024)
def _all_reduce_spec(dtype: torch.dtype, reduction: str, count: int) -> OpSpec:
    return OpSpec("all_reduce", str(dtype).removeprefix("torch."), reduction, None, (count,))


def all_reduce_coalesced(tensors: Sequence[Tensor], reduction: str) -> list[Call]:
    """As `all_reduce` for each tensor, in one op for each dtype."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    return [_packed_all_reduce(same, reduction) for same in by_dtype.values()]


def _packed_all_reduce(tensors: list[Tensor], reduction: str) -> Call:
    with torch.no_grad():
        packed = torch.cat([to_host(tensor).reshape(-1) for tensor in tensors])
    _check_reducible(packed, reduction)
    numbers = _as_reals(packed)
    spec = OpSpec("all_reduce", _dtype_name(numbers), reduction, None, (numbers.numel(),))
    return Call(spec, numbers, numbers, tensors, lambda: _unpack(packed, tensors))


def reduce(tensor: Tensor, reduction: str, root: int, rank: int) -> Call:
    """`root` gets the reduction of all ranks' `tensor`, in place; other ranks' tensors stay as they are."""
    _check_reducible(tensor, reduction)
    host, ready = leaving(tensor)
    numbers = _as_reals(host)
    spec = OpSpec("reduce", _dtype_name(numbers), reduction, root, (numbers.numel(),))
    return Call(spec, numbers, numbers, [tensor], _back(host, tensor) if rank == root else None, ready)


def broadcast(tensor: Tensor, root: int, rank: int) -> Call:
    """Every rank gets `root`'s `tensor`, in place."""
    host, ready = leaving(tensor) if rank == root else (room_for(tensor), None)
    spec = OpSpec("broadcast", "uint8", None, root, (host.nbytes,))
    return Call(spec, host, host, [tensor], None if rank == root else _back(host, tensor), ready)


def all_gather(outputs: Sequence[Tensor], tensor: Tensor, rank: int, size: int) -> Call:
    """``outputs[i]`` gets rank i's `tensor`. Sizes may differ between ranks, if all ranks' outputs have those."""
    _check_length("all_gather", "output tensors", outputs, size)
    _check_alike("all_gather", [*outputs, tensor])
    if outputs[rank].nbytes != tensor.nbytes:
        raise UsageError(
            f"all_gather: rank {rank} passes {_describe(tensor)}, but its output {rank} is {_describe(outputs[rank])}"
        )
    return _movement("all_gather", _sizes(outputs), to_host(tensor), outputs)


def all_gather_single(output: Tensor, tensor: Tensor, rank: int, size: int) -> Call:
    """`output` gets all ranks' `tensor` in rank order; it has `size` times the elements."""
    _check_alike("all_gather", [output, tensor])
    if output.numel() != size * tensor.numel():
        raise UsageError(
            f"all_gather: the output is {_describe(output)}; wanted {size} times the input, {_describe(tensor)}"
        )
    target = room_for(output)
    host, ready = leaving(tensor)
    source = _apart(host, target, rank * tensor.nbytes)
    spec = OpSpec("all_gather", "uint8", None, None, (tensor.nbytes,) * size)
    return Call(spec, source, target, [output], _back(target, output), ready)


def reduce_scatter(output: Tensor, tensors: Sequence[Tensor], reduction: str, rank: int, size: int) -> Call:
    """`output` gets the reduction of all ranks' ``tensors[rank]``. Sizes may differ between chunks."""
    _check_length("reduce_scatter", "input tensors", tensors, size)
    _check_alike("reduce_scatter", [output, *tensors])
    with torch.no_grad():
        packed = torch.cat([to_host(tensor).reshape(-1) for tensor in tensors])
    return _reduce_scatter(output, packed, reduction, tuple(tensor.numel() for tensor in tensors), rank)


def reduce_scatter_single(output: Tensor, tensor: Tensor, reduction: str, rank: int, size: int) -> Call:
    """`output` gets chunk `rank` of the reduction of all ranks' `tensor`, which has `size` equal chunks."""
    _check_alike("reduce_scatter", [output, tensor])
    if tensor.numel() != size * output.numel():
        raise UsageError(
            f"reduce_scatter: the input is {_describe(tensor)}; wanted {size} times the output, {_describe(output)}"
        )
    return _reduce_scatter(output, to_host(tensor), reduction, (output.numel(),) * size, rank)


def _reduce_scatter(output: Tensor, source: Tensor, reduction: str, counts: tuple[int, ...], rank: int) -> Call:
    if output.numel() != counts[rank]:
        raise UsageError(f"reduce_scatter: the output is {_describe(output)}; chunk {rank} has {counts[rank]} elements")
    _check_reducible(source, reduction)
    if source.is_complex():
        counts = tuple(2 * count for count in counts)
    target = room_for(output)
    own = sum(counts[:rank]) * (source.nbytes // max(1, sum(counts)))
    source = _apart(source, target, -own)
    numbers, landing = _as_reals(source), _as_reals(target)
    spec = OpSpec("reduce_scatter", _dtype_name(numbers), reduction, None, counts)
    return Call(spec, numbers, landing, [output], _back(target, output))


def all_to_all(outputs: Sequence[Tensor], tensors: Sequence[Tensor], size: int) -> Call:
    """``outputs[i]`` gets what rank i holds in its ``tensors[rank]``. Sizes may all differ."""
    _check_length("all_to_all", "input tensors", tensors, size)
    _check_length("all_to_all", "output tensors", outputs, size)
    _check_alike("all_to_all", [*outputs, *tensors])
    return _movement("all_to_all", _sizes(tensors) + _sizes(outputs), _packed_bytes(tensors), outputs)


def all_to_all_single(
    output: Tensor, tensor: Tensor, output_splits: Sequence[int], input_splits: Sequence[int], size: int
) -> Call:
    """Rank j gets the j-th part of `tensor`; `output` gets the parts for this rank in rank order.

    Args:
        output_splits: rows (first dimension) that come from each rank; empty for equal parts.
        input_splits: rows that go to each rank; empty for equal parts.
    """
    _check_alike("all_to_all", [output, tensor])
    counts = _rows("input", tensor, input_splits, size) + _rows("output", output, output_splits, size)
    target = room_for(output)
    source = _apart(to_host(tensor), target, None)
    return Call(OpSpec("all_to_all", "uint8", None, None, counts), source, target, [output], _back(target, output))


def gather(outputs: Sequence[Tensor], tensor: Tensor, root: int, rank: int, size: int) -> Call:
    """``outputs[i]`` on `root` gets rank i's `tensor`; other ranks pass no outputs. Runs as a sparse all-to-all."""
    _check_root("gather", root, size)
    _check_length("gather", "output tensors", outputs, size if rank == root else 0)
    _check_alike("gather", [*outputs, tensor])
    sent = tuple(tensor.nbytes if peer == root else 0 for peer in range(size))
    return _movement("all_to_all", sent + (_sizes(outputs) if rank == root else (0,) * size), to_host(tensor), outputs)


def gather_single(output: Tensor, tensor: Tensor, root: int, rank: int, size: int) -> Call:
    """`output` on `root` gets all ranks' `tensor` in rank order, along its first dimension; elsewhere it is unused."""
    if rank != root:
        return gather([], tensor, root, rank, size)
    if output.dim() == 0 or output.shape[0] % size or output.numel() != size * tensor.numel():
        raise UsageError(
            f"gather: the output is {_describe(output)}; wanted {size} times the input, {_describe(tensor)}"
        )
    return gather(output.tensor_split(size), tensor, root, rank, size)


def scatter(output: Tensor, tensors: Sequence[Tensor], root: int, rank: int, size: int) -> Call:
    """`output` gets ``tensors[rank]`` of `root`; other ranks pass no tensors. Runs as a sparse all-to-all."""
    _check_root("scatter", root, size)
    _check_length("scatter", "input tensors", tensors, size if rank == root else 0)
    _check_alike("scatter", [output, *tensors])
    received = tuple(output.nbytes if peer == root else 0 for peer in range(size))
    source = _packed_bytes(tensors) if rank == root else torch.empty(0, dtype=torch.uint8)
    return _movement("all_to_all", (_sizes(tensors) if rank == root else (0,) * size) + received, source, [output])


def barrier() -> Call:
    """No rank returns before every rank has called it."""
    call = all_reduce(torch.zeros(1, dtype=torch.uint8), "max")
    call.spec = _BARRIER
    return call


def _movement(collective: Collective, counts: tuple[int, ...], source: Tensor, outputs: Sequence[Tensor]) -> Call:
    """Sends the bytes of `source`; those received fill `outputs`, one after the other."""
    spec = OpSpec(collective, "uint8", None, None, counts)
    given = list(outputs)
    if len(given) == 1 and is_plain(given[0]):
        return Call(spec, _apart(source, given[0], None), given[0], given)
    target = torch.empty(sum(output.nbytes for output in given), dtype=torch.uint8)
    let_callers_go_first(given)

    def finish() -> None:
        for part, output in zip(torch.split(target, [output.nbytes for output in given]), given, strict=True):
            if output.numel():
                from_host(part.view(output.dtype).view(output.shape), output)

    return Call(spec, source, target, given, finish)


def _as_reals(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _check_reducible(tensor: Tensor, reduction: str) -> None:
    if tensor.is_complex() and reduction not in ("sum", "avg"):
        raise UsageError(f"{reduction} of {tensor.dtype} is not supported; complex numbers have only sum and avg")


def _back(host: Tensor, tensor: Tensor) -> Callable[[], None] | None:
    return None if host is tensor else lambda: from_host(host, tensor)


def _unpack(packed: Tensor, tensors: Sequence[Tensor]) -> None:
    for part, tensor in zip(torch.split(packed, [tensor.numel() for tensor in tensors]), tensors, strict=True):
        from_host(part.view(tensor.shape), tensor)


def _packed_bytes(tensors: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([as_bytes(to_host(tensor)) for tensor in tensors])


def _sizes(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(tensor.nbytes for tensor in tensors)


def _rows(which: str, tensor: Tensor, splits: Sequence[int], size: int) -> tuple[int, ...]:
    """Bytes of each rank's part, where parts are runs of rows."""
    rows = tensor.shape[0] if tensor.dim() else 1
    if not splits:
        if rows % size:
            raise UsageError(f"all_to_all: the {which} has {rows} rows, which {size} ranks cannot split evenly")
        return (tensor.nbytes // size,) * size
    if len(splits) != size or sum(splits) != rows or min(splits) < 0:
        raise UsageError(f"all_to_all: {which} splits {list(splits)}; wanted {size} numbers that add up to {rows} rows")
    row_bytes = tensor.nbytes // max(1, rows)
    return tuple(split * row_bytes for split in splits)


def _apart(source: Tensor, target: Tensor, shared_at: int | None) -> Tensor:
    """`source`, or a copy of it if it overlaps `target`: the engine writes results while it still reads.

    Args:
        shared_at: the overlap is allowed if source lies exactly this many bytes after target's start.
    """
    start, end = source.data_ptr(), source.data_ptr() + source.nbytes
    apart = end <= target.data_ptr() or target.data_ptr() + target.nbytes <= start
    if apart or (shared_at is not None and start == target.data_ptr() + shared_at):
        return source
    return source.clone()


def _check_length(collective: str, what: str, tensors: Sequence[Tensor], wanted: int) -> None:
    if len(tensors) != wanted:
        raise UsageError(f"{collective}: got {len(tensors)} {what}; wanted {wanted}")


def _check_root(collective: str, root: int, size: int) -> None:
    """For collectives that run as one without a root; the others' is checked with their spec."""
    if not 0 <= root < size:
        raise UsageError(f"{collective}: root is {root}; this group has ranks 0 to {size - 1}")


def _check_alike(collective: str, tensors: Sequence[Tensor]) -> None:
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1:
        raise UsageError(f"{collective}: got tensors of {', '.join(sorted(map(str, dtypes)))}; wanted one dtype")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.numel()} elements of {tensor.dtype}"


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
