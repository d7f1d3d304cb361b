"""What each collective asks of its trees.

    collective      directions   a tree carries
    all_reduce      up, down     its share of the message
    reduce          up           its share of the message; its root is the collective's root
    broadcast       down         its share of the message; its root is the collective's root
    reduce_scatter  up           the chunk that its root gets, or a part of it
    all_gather      down         the chunk that its root has, or a part of it
    all_to_all      down         the chunk from its root to its only child, or a part of it

The rest is what a rank holds of a tree before (`precondition`) and after (`postcondition`), as sets of contributions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collectives.schedule.tree import Tree


@dataclass(frozen=True)
class Specification:
    """What a collective asks of its forest.

    Attributes:
        up: partial sums travel from child to parent.
        down: the value travels from parent to child.
        chunked: the message is one chunk for each rank (all_to_all: for each pair) and trees carry chunks.
        rooted: the collective has a root, and every tree has the same.
        pairwise: a tree joins two ranks, not all.
    """

    up: bool
    down: bool
    chunked: bool = False
    rooted: bool = False
    pairwise: bool = False

    def chunk_of(self, tree: Tree) -> tuple[int, ...]:
        """Names the chunk that a tree carries, where trees carry chunks: its owner, or the pair it travels between."""
        return (tree.root, *(child for child, _ in tree.edges[:1])) if self.pairwise else (tree.root,)

    def precondition(self, tree: Tree) -> dict[int, int]:
        """The contributions that each member holds at first, as a bit set of the ranks they come from."""
        return {rank: 1 << rank if self.up or rank == tree.root else 0 for rank in tree.members}

    def postcondition(self, tree: Tree) -> dict[int, int]:
        """The contributions that members must hold in the end, each exactly once; others may hold anything."""
        everything = sum(1 << rank for rank in tree.members) if self.up else 1 << tree.root
        return dict.fromkeys(tree.members if self.down else (tree.root,), everything)


SPECIFICATIONS: dict[str, Specification] = {
    "all_reduce": Specification(up=True, down=True),
    "reduce": Specification(up=True, down=False, rooted=True),
    "reduce_scatter": Specification(up=True, down=False, chunked=True),
    "broadcast": Specification(up=False, down=True, rooted=True),
    "all_gather": Specification(up=False, down=True, chunked=True),
    "all_to_all": Specification(up=False, down=True, chunked=True, pairwise=True),
}
