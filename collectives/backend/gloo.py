"""torch's Gloo as an executor: the fallback for all that a group does.

It needs no JIT, and no sockets or threads of ours. Every Call means the same as on the engine: averages
are computed from sums, 16-bit floats are summed as float32 and rounded once, bool and int16 travel in types that Gloo
supports. It is slower than the native engine, its float sums differ from the engine's in the last bits, and its minimum
and maximum may drop NaN.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias

import torch
from torch import Tensor

from collectives.backend.c10d import GlooGroup, Store, Work, all_reduce_options, c10d, dist
from collectives.backend.staging import as_bytes, writing_to
from collectives.backend.tensors import Call, Done
from collectives.errors import CollectiveError, GroupClosed, OpTimeout, RendezvousError
from collectives.options import Options
from collectives.schedule.op import FLOATS, OpSpec
from collectives.transport.tcp import own_addresses

# Gloo's handle of an op, and the function that turns its result into the Call's.
Begun: TypeAlias = tuple[Work, Callable[[], object]]

GLOO_DTYPE = {
    "float16": torch.float32,
    "bfloat16": torch.float32,
    "int16": torch.int32,
    "bool": torch.uint8,
}
GLOO_OP = {
    "sum": dist.ReduceOp.SUM,
    "avg": dist.ReduceOp.SUM,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
    "product": dist.ReduceOp.PRODUCT,
    "band": dist.ReduceOp.BAND,
    "bor": dist.ReduceOp.BOR,
    "bxor": dist.ReduceOp.BXOR,
}
# On bytes 0 and 1 maximum is "or" and minimum is "and".
GLOO_OP_ON_BOOL = {**GLOO_OP, "sum": dist.ReduceOp.MAX, "product": dist.ReduceOp.MIN}


def connect(store: Store, rank: int, size: int, timeout_s: float, options: Options) -> GlooGroup:
    """A Gloo group over the network interface that the options name; all ranks must call it.

    Raises:
        RendezvousError: Gloo could not form the group.
    """
    settings = dist.ProcessGroupGloo._Options()
    settings._timeout = timedelta(seconds=timeout_s)
    settings._threads = 2
    try:
        settings._devices = [_device(store, options)]
        return dist.ProcessGroupGloo(store, rank, size, settings)
    except RuntimeError as error:
        raise RendezvousError(f"rank {rank} of {size}: Gloo could not form the group: {error}") from error


def _device(store: Store, options: Options) -> Any:
    chosen = os.environ.get("GLOO_SOCKET_IFNAME") if options.interface is None else options.interface
    if chosen:
        chosen = chosen.split(",")[0].strip()
        return dist.ProcessGroupGloo.create_device(interface=chosen)
    # As the engine does: the address of the interface that reaches the store, which the other ranks reach, too.
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    towards = store.host if isinstance(store, dist.TCPStore) else None
    return dist.ProcessGroupGloo.create_device(hostname=own_addresses(towards)[0])


class GlooExecutor:
    """Executes Calls on a Gloo group of `size` ranks, of which this is `rank`."""

    def __init__(self, gloo: GlooGroup, rank: int, size: int) -> None:
        self._gloo: GlooGroup | None = gloo
        self._rank = rank
        self._size = size

    def run(self, call: Call, timeout_s: float) -> None:
        work, complete = self._begin(call, timeout_s)
        try:
            work.wait()
        except RuntimeError as error:
            raise _translated(call, error) from error
        complete()

    def start(self, call: Call, done: Done, timeout_s: float) -> None:
        work, complete = self._begin(call, timeout_s)

        def ended(future: torch.futures.Future[Any]) -> None:
            try:
                future.value()
                complete()
            except Exception as error:  # for the caller; a callback of a future has nobody else to report to
                done(_translated(call, error) if isinstance(error, RuntimeError) else error)
            else:
                done(None)

        work.get_future().then(ended)

    def close(self) -> None:
        self._gloo = None

    def _begin(self, call: Call, timeout_s: float) -> Begun:
        if self._gloo is None:
            raise GroupClosed(f"{call.spec}: the group was destroyed")
        call.spec.check(self._size, self._rank)
        return getattr(self, f"_{call.spec.collective}")(self._gloo, call, timedelta(seconds=timeout_s))  # type: ignore[no-any-return]

    def _all_reduce(self, gloo: GlooGroup, call: Call, timeout: timedelta) -> Begun:
        wide = _widened(call.spec, call.source, fresh=call.target is not call.source)
        options = all_reduce_options(_op(call.spec), timeout=timeout)
        work = gloo.allreduce([_never_empty(wide)], options)
        return work, lambda: _narrow(call.spec, wide, call.target.reshape(-1), self._size)

    def _reduce(self, gloo: GlooGroup, call: Call, timeout: timedelta) -> Begun:
        is_root = self._rank == call.spec.root
        wide = _widened(call.spec, call.source, fresh=not is_root)  # Gloo uses it as scratch
        options = c10d.ReduceOptions()
        options.reduceOp, options.rootRank, options.timeout = _op(call.spec), call.spec.root, timeout
        work = gloo.reduce([_never_empty(wide)], options)
        return work, lambda: _narrow(call.spec, wide, call.target.reshape(-1), self._size) if is_root else None

    def _reduce_scatter(self, gloo: GlooGroup, call: Call, timeout: timedelta) -> Begun:
        """An all-reduce of which each rank keeps its chunk: Gloo's reduce-scatter wants chunks of one size."""
        wide = _widened(call.spec, call.source, fresh=True)
        options = all_reduce_options(_op(call.spec), timeout=timeout)
        work = gloo.allreduce([_never_empty(wide)], options)
        chunk = torch.split(wide, list(call.spec.counts))[self._rank]
        return work, lambda: _narrow(call.spec, chunk, call.target.reshape(-1), self._size)

    def _broadcast(self, gloo: GlooGroup, call: Call, timeout: timedelta) -> Begun:
        options = c10d.BroadcastOptions()
        options.rootRank, options.timeout = call.spec.root, timeout
        return gloo.broadcast([_never_empty(as_bytes(call.target))], options), _nothing

    def _all_gather(self, gloo: GlooGroup, call: Call, timeout: timedelta) -> Begun:
        """Chunks are padded to the longest: Gloo wants chunks of one size."""
        longest = max(1, *call.spec.counts)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: call.source.nbytes] = as_bytes(call.source)
        received = [torch.empty_like(padded) for _ in range(self._size)]
        options = c10d.AllgatherOptions()
        options.timeout = timeout
        work = gloo.allgather([received], [padded], options)

        def complete() -> None:
            with writing_to(call.target):
                parts = torch.split(as_bytes(call.target), list(call.spec.counts))
                for chunk, part in zip(received, parts, strict=True):
                    part.copy_(chunk[: len(part)])

        return work, complete

    def _all_to_all(self, gloo: GlooGroup, call: Call, timeout: timedelta) -> Begun:
        options = c10d.AllToAllOptions()
        options.timeout = timeout
        sent, received = list(call.spec.counts[: self._size]), list(call.spec.counts[self._size :])
        return gloo.alltoall_base(as_bytes(call.target), as_bytes(call.source), received, sent, options), _nothing


def _nothing() -> None:
    pass


def _op(spec: OpSpec) -> Any:
    return (GLOO_OP_ON_BOOL if spec.dtype == "bool" else GLOO_OP)[str(spec.reduction)]


def _never_empty(tensor: Tensor) -> Tensor:
    """Gloo has no empty messages, but ranks must meet in an empty op, too."""
    return tensor if tensor.numel() else torch.zeros(1, dtype=tensor.dtype)


def _widened(spec: OpSpec, tensor: Tensor, fresh: bool) -> Tensor:
    """The flat elements in a dtype that Gloo can reduce without loss; a copy if `fresh`."""
    return tensor.detach().reshape(-1).to(GLOO_DTYPE.get(spec.dtype, tensor.dtype), copy=fresh)


def _narrow(spec: OpSpec, wide: Tensor, target: Tensor, size: int) -> None:
    """Write Gloo's result to the target, rounded or wrapped to its dtype, and divided if it is an average."""
    with writing_to(wide), writing_to(target):
        if spec.reduction != "avg":
            result = wide
        elif spec.dtype in FLOATS:
            result = wide.div_(size)
        else:
            result = wide.to(target.dtype).div_(size, rounding_mode="trunc")
        if result.data_ptr() != target.data_ptr():
            target.copy_(result)


def _translated(call: Call, error: RuntimeError) -> CollectiveError:
    kind = OpTimeout if "timed out" in str(error).lower() else CollectiveError
    return kind(f"{call.spec} on Gloo: {error}")
