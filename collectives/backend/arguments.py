"""What c10d passes to the methods of a process group, and what of it a group of ours takes.

c10d's lists of tensors are for the several devices of a rank, as in ``reduce_scatter([output], [[input, ...]])``. A
rank of ours has one device, so each such list has one item.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from collectives.backend.c10d import dist
from collectives.errors import UsageError

REDUCTION = {
    dist.ReduceOp.SUM: "sum",
    dist.ReduceOp.AVG: "avg",
    dist.ReduceOp.MIN: "min",
    dist.ReduceOp.MAX: "max",
    dist.ReduceOp.PRODUCT: "product",
    dist.ReduceOp.BAND: "band",
    dist.ReduceOp.BOR: "bor",
    dist.ReduceOp.BXOR: "bxor",
}
_REDUCTION_BY_VALUE = {int(op): name for op, name in REDUCTION.items()}  # torch's enum compares slowly


def reduction_of(opts: Any) -> str:
    """Our name of the reduction in an options object.

    Raises:
        UsageError: there is none, as for PREMUL_SUM.
    """
    op = opts.reduceOp.op
    name = _REDUCTION_BY_VALUE.get(int(op))
    if name is None:
        raise UsageError(f"reduction {op.name} is not supported; use one of {', '.join(REDUCTION.values())}")
    return name


def only(op: str, given: Any, coalesced: str | None = None) -> Any:
    """The one item of a list; a tensor stands for a list of it.

    Args:
        op: name of the collective, for the error.
        coalesced: the method for several tensors of one device, if there is one; the error names it.

    Raises:
        UsageError: more or fewer than one.
    """
    if isinstance(given, Tensor):
        return given
    if len(given) != 1:
        several = f"{coalesced} takes several" if coalesced else "several take a call each"
        raise UsageError(f"{op}: got a list of {len(given)}; wanted one of each rank; {several}")
    return given[0]


def only_list(op: str, given: Any) -> Any:
    """The one list of tensors in a list of lists. c10d also passes it alone, and nothing on ranks that have none.

    Raises:
        UsageError: several lists.
    """
    return only(op, given) if given and isinstance(given[0], (list, tuple)) else given


def check_root_tensor(op: str, place: int) -> None:
    """Check which item of the root's list is meant.

    Raises:
        UsageError: not the first, of which alone there can be one.
    """
    if place != 0:
        raise UsageError(f"{op}: the root tensor is number {place} of the root's list; wanted 0, its only one")
