"""Whose trees a forest has: every rank's, or in large groups those of some ranks only."""

from __future__ import annotations

from collections.abc import Sequence

from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS

MAX_ROOTS = 512  # a forest of all ranks' trees has ranks**2 edges
FEW_ROOTS = 64


def tree_roots(ranks: Sequence[int], collective: Collective) -> list[int]:
    """All the ranks, or FEW_ROOTS of them at equal distances where there are more than MAX_ROOTS.

    Where trees carry chunks every rank needs a tree of its own.
    """
    if len(ranks) <= MAX_ROOTS or SPECIFICATIONS[collective].chunked:
        return list(ranks)
    return [ranks[i * len(ranks) // FEW_ROOTS] for i in range(FEW_ROOTS)]
