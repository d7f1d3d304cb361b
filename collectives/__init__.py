"""Collectives for narrow and unequal links: a torch.distributed backend, and the calls around it.

    import collectives
    dist.init_process_group("narrowgauge")

Importing this package is cheap: it loads neither torch nor numba. The backend is registered with torch at once if torch
is loaded, and otherwise as soon as torch.distributed is, so the order of the imports doesn't matter. numba comes with
the first group or with `warm_up`. The plain modules (`collectives.planning`,
`collectives.topology`, ...) need neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from collectives.backend.register import register_when_imported
from collectives.backend.stats import stats
from collectives.errors import (
    CollectiveError,
    GroupClosed,
    NarrowgaugeError,
    OpMismatch,
    OpTimeout,
    PeerLost,
    PlanError,
    ProtocolError,
    RendezvousError,
    UsageError,
)
from collectives.options import Options, configure
from collectives.version import __version__

if TYPE_CHECKING:
    import torch

    from collectives.backend.drop_in import install, uninstall
    from collectives.planning.plan import Plan
    from collectives.training.batch_shares import Shares
    from collectives.training.bucket_size import bucket_mb
    from collectives.training.ddp import attach, set_weight
    from collectives.training.sampler import Sampler, local_batch

__all__ = [
    "all_reduce",
    "attach",
    "bucket_mb",
    "configure",
    "install",
    "local_batch",
    "plan",
    "Sampler",
    "set_weight",
    "Shares",
    "stats",
    "uninstall",
    "warm_up",
    "Options",
    "NarrowgaugeError",
    "UsageError",
    "RendezvousError",
    "PlanError",
    "CollectiveError",
    "PeerLost",
    "OpMismatch",
    "OpTimeout",
    "GroupClosed",
    "ProtocolError",
    "__version__",
]


def all_reduce(
    tensor: torch.Tensor, op: str = "sum", group: object = None, async_op: bool = False, codec: str | None = None,
    residual: torch.Tensor | None = None,
) -> object:  # fmt: skip
    """Reduce `tensor` over the ranks of a group, in place.

    Args:
        tensor: any dense tensor, same shape and dtype on all ranks.
        op: "sum", "avg", "min", "max", "product", "band", "bor" or "bxor".
        group: a process group; None takes the default one.
        async_op: return at once.
        codec: how a sum or average of float32 looks on network links: "bf16", "int8", "int4", on narrow ones only:
            "narrow-bf16", "narrow-int8", "narrow-int4", or None for as it is; see `schedule/codec.py`. All ranks get
            the same bits, but not quite the sum.
        residual: float32 of as many elements, zeros at first, the same tensor each time: what encoding lost comes
            back the next time (error feedback), so that nothing is lost over many. None: it is lost.

    Returns:
        With `async_op` a torch Work, else None.

    Raises:
        UsageError: unknown op, or one that the dtype lacks; a codec for anything but a sum or average of float32, or on
            a group that is not ours or runs on Gloo; a residual without a codec, or not like the tensor.
        CollectiveError: the op failed on this or another rank.
    """
    from collectives.backend.c10d import dist

    if residual is not None and codec in (None, "none"):
        raise UsageError("got a residual and no codec; a residual is what a codec has lost, so give both or neither")
    if codec is not None:
        from collectives.backend.process_group import native_group

        work = native_group(group, f"codec {codec!r}").all_reduce_coded(tensor, op.lower(), codec, residual, async_op)
        return work if async_op else None
    name = op.upper()
    if name not in dist.ReduceOp.RedOpType.__members__ or name == "PREMUL_SUM":
        raise UsageError(f"op is {op!r}; wanted sum, avg, min, max, product, band, bor or bxor")
    return dist.all_reduce(tensor, getattr(dist.ReduceOp, name), group, async_op)


def plan(group: object = None, collective: str = "all_reduce", num_bytes: int = 25_000_000) -> Plan:
    """The plan that a group follows; ``print(plan().explain())`` tells why.

    Args:
        group: a group of backend narrowgauge; None takes the default one.
        collective: "all_reduce", "reduce", "reduce_scatter", "broadcast", "all_gather" or "all_to_all".
        num_bytes: message size in bytes.

    Raises:
        UsageError: the group is not ours, or runs on Gloo.
    """
    from collectives.backend.process_group import native_group

    return native_group(group, "a plan").plan(collective, num_bytes)  # type: ignore[arg-type]


def warm_up() -> float:
    """Compile the engine, or load it from Numba's cache on disk, before the first group needs it.

    Returns:
        Seconds it took: tens the first time on a machine, well under one after that.
    """
    from collectives.engine.selftest import warm_up as warm_up_engine

    return warm_up_engine()


_BRING_TORCH = {
    "attach": "training.ddp",
    "bucket_mb": "training.bucket_size",
    "install": "backend.drop_in",
    "local_batch": "training.sampler",
    "Sampler": "training.sampler",
    "set_weight": "training.ddp",
    "Shares": "training.batch_shares",
    "uninstall": "backend.drop_in",
}


def __getattr__(name: str) -> Any:
    """What brings torch with it is loaded when it is asked for."""
    if name in _BRING_TORCH:
        return getattr(importlib.import_module(f"{__name__}.{_BRING_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_when_imported()
