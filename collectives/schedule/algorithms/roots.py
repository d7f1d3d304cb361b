"""The roots of a forest's trees: every rank, or only some ranks in large groups."""

from __future__ import annotations

from collections.abc import Sequence

from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS

MAX_ROOTS = 512  # a forest with a tree for every rank has ranks**2 edges, which take memory and planning time
FEW_ROOTS = 64


def tree_roots(ranks: Sequence[int], collective: Collective) -> list[int]:
    """All the ranks, or FEW_ROOTS of them at equal distances if there are more than MAX_ROOTS.

    Where trees carry chunks every rank needs a tree of its own, so then all of them.
    """
    if len(ranks) <= MAX_ROOTS or SPECIFICATIONS[collective].chunked:
        return list(ranks)
    return [ranks[i * len(ranks) // FEW_ROOTS] for i in range(FEW_ROOTS)]
