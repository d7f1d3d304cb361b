"""Whose trees a forest has: every rank's, or in large groups those of some ranks only."""

from __future__ import annotations

from collections.abc import Sequence

from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS

MAX_HEADS = 512  # a forest of all ranks' trees has ranks**2 edges
FEW_HEADS = 64


def heads(ranks: Sequence[int], collective: Collective) -> list[int]:
    """All the ranks, or FEW_HEADS of them at equal distances where there are more than MAX_HEADS.

    Where trees carry chunks every rank needs a tree of its own.
    """
    if len(ranks) <= MAX_HEADS or SPECIFICATIONS[collective].chunked:
        return list(ranks)
    return [ranks[i * len(ranks) // FEW_HEADS] for i in range(FEW_HEADS)]
