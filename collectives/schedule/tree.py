"""A tree: a root and each other member's parent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Tree:
    """A rooted tree over ranks.

    Attributes:
        root: the rank that has no parent.
        edges: (child, parent) pairs; every member but the root is a child exactly once.
    """

    root: int
    edges: tuple[tuple[int, int], ...]

    @classmethod
    def star(cls, root: int, members: Iterable[int]) -> Tree:
        """Every member but the root is the root's child."""
        return cls(root, tuple((rank, root) for rank in members if rank != root))

    @classmethod
    def path(cls, order: Sequence[int]) -> Tree:
        """The first rank is the root; each rank after it is the child of the one before."""
        return cls(order[0], tuple((order[i], order[i - 1]) for i in range(1, len(order))))

    @cached_property
    def _parents(self) -> dict[int, int]:
        return dict(self.edges)

    @cached_property
    def _children(self) -> dict[int, tuple[int, ...]]:
        children: dict[int, list[int]] = {}
        for child, parent in self.edges:
            children.setdefault(parent, []).append(child)
        return {parent: tuple(sorted(ranks)) for parent, ranks in children.items()}

    @cached_property
    def members(self) -> tuple[int, ...]:
        """Every rank that takes part, ascending."""
        return tuple(sorted({self.root, *self._parents}))

    def parent_of(self, rank: int) -> int | None:
        """The rank's parent; None for the root and for ranks that are not members."""
        return self._parents.get(rank)

    def children_of(self, rank: int) -> tuple[int, ...]:
        """The rank's children, ascending; empty for leaves and for ranks that are not members."""
        return self._children.get(rank, ())

    @cached_property
    def depth(self) -> int:
        """Edges on the longest path from a member to the root; 0 for a single rank."""
        level, depth = self.children_of(self.root), 0
        while level:
            level = tuple(child for rank in level for child in self.children_of(rank))
            depth += 1
        return depth
