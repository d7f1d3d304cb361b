"""The public calls that need a group: `collectives.all_reduce` and `collectives.plan`."""

from __future__ import annotations

from torch import Tensor

from collectives.backend.c10d import dist
from collectives.backend.process_group import native_group
from collectives.backend.untraced import untraced
from collectives.errors import UsageError
from collectives.planning.plan import Plan
from collectives.schedule.op import REDUCTIONS, Collective


@untraced
def all_reduce(
    tensor: Tensor, op: str = "sum", group: object = None, async_op: bool = False, codec: str | None = None,
    residual: Tensor | None = None,
) -> object:  # fmt: skip
    """Reduce `tensor` over the ranks of a group, in place.

    Args:
        tensor: any dense tensor, same shape and dtype on all ranks.
        op: "sum", "avg", "min", "max", "product", "band", "bor" or "bxor".
        group: a process group; None takes the default one.
        async_op: return at once.
        codec: how a sum or average of float32 is encoded on network links: "bf16", "int8" or "int4"; on narrow links
            only: "narrow-bf16", "narrow-int8" or "narrow-int4"; None sends it as it is. See `schedule/codec.py`. All
            ranks get the same bits, which differ from the exact sum by the rounding of the codec.
        residual: float32, as many elements as `tensor`, in contiguous CPU memory; zeros at first, then the same tensor
            in every call. What encoding cut off is kept in it and added in the next call (error feedback), so the
            error does not add up over many calls. None: what encoding cuts off is lost.

    Returns:
        With `async_op` a torch Work, else None.

    Raises:
        UsageError: unknown op, or one that the dtype lacks; a codec for anything but a sum or average of float32, or on
            a group of another backend or on Gloo; a residual without a codec, or one that does not match the tensor.
        CollectiveError: the op failed on this or another rank.
    """
    if residual is not None and codec in (None, "none"):
        raise UsageError("got a residual without a codec; a residual holds what a codec cut off, so pass both")
    if codec is not None:
        work = native_group(group, f"codec {codec!r}").all_reduce_coded(tensor, op.lower(), codec, residual, async_op)
        return work if async_op else None
    if op.lower() not in REDUCTIONS:
        raise UsageError(f"op is {op!r}; wanted {', '.join(REDUCTIONS[:-1])} or {REDUCTIONS[-1]}")
    return dist.all_reduce(tensor, getattr(dist.ReduceOp, op.upper()), group, async_op)


@untraced
def plan(group: object = None, collective: Collective = "all_reduce", num_bytes: int = 25_000_000) -> Plan:
    """The plan that a group follows. ``print(collectives.plan())`` explains it.

    The explanation shows the links, the forest with its shares, predicted seconds, the bound, the bottleneck, and what
    the other options would take.

    Args:
        group: a group of backend narrowgauge; None takes the default one.
        collective: "all_reduce", "reduce", "reduce_scatter", "broadcast", "all_gather" or "all_to_all".
        num_bytes: message size in bytes.

    Raises:
        UsageError: the group is of another backend, or runs on Gloo.
    """
    return native_group(group, "a plan").plan(collective, num_bytes)
