"""What each collective asks of its trees.

    collective      directions   a tree carries
    all_reduce      up, down     its share of the message
    reduce          up           its share of the message; its root is the collective's root
    broadcast       down         its share of the message; its root is the collective's root
    reduce_scatter  up           the chunk that its root gets, or a part of it
    all_gather      down         the chunk that its root has, or a part of it
    all_to_all      down         the chunk from its root to its only child, or a part of it

Every other fact about a collective follows from these and is a property here: whether it reduces, who owns a chunk,
how many counts an op has, what must cross the border of a host. Other files ask for the fact, never for the name.

What a rank holds of a tree before an op (`precondition`) and after it (`postcondition`) is a set of contributions.
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

    @property
    def reduces(self) -> bool:
        """Whether contributions are folded, so that an op has a reduction."""
        return self.up

    @property
    def directions(self) -> int:
        """How often the message crosses each edge of a tree: 1 or 2."""
        return self.up + self.down

    @property
    def messages_per_edge(self) -> int:
        """For each slice: where a collective only goes up, an empty message comes down and frees the slot."""
        return 2 if self.up else 1

    @property
    def default_root(self) -> int | None:
        """The root that commands take where none was given; None where a collective has none."""
        return 0 if self.rooted else None

    @property
    def counts_are_private(self) -> bool:
        """Whether each rank knows only its own counts, so that ranks must not compare them, or plan by them."""
        return self.pairwise

    @property
    def synchronizes(self) -> bool:
        """Whether no rank's op can be over before every other rank's has begun. Messages without elements aside."""
        return not self.rooted and not self.pairwise

    def num_counts(self, size: int) -> int:
        """Numbers in an op's counts: one for the message, or for each chunk; pairwise, for each chunk at both ends."""
        if not self.chunked:
            return 1
        return 2 * size if self.pairwise else size

    def bus_factor(self, size: int) -> float:
        """Bytes that each of `size` ranks sends, on average, for a byte of the message: busbw / algbw of nccl-tests."""
        return 1.0 if self.rooted else self.directions * (size - 1) / size

    def border_crossings(self, ranks: int, size: int, has_root: bool) -> tuple[float, float]:
        """What must leave and what must enter a part of the group, in bytes for each byte of the message.

        A part owns the chunks of its ranks, or the whole message if it has the root. Contributions to what others own
        must leave it (up), and so must its own chunks where others receive them (down).

        Args:
            ranks: how many of the `size` ranks are in the part.
            has_root: whether the collective's root is one of them.
        """
        outside = 1 - ranks / size
        if self.pairwise:
            return ranks * outside, ranks * outside
        if self.up and self.down:
            return 1.0, 1.0
        owned = float(has_root) if self.rooted else ranks / size
        others = 1 - float(has_root) if self.rooted else outside
        return (others, owned) if self.up else (owned, others)

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
