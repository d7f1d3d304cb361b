"""Trees with shares: the one form in which every collective is described, printed and checked.

In a tree partial sums flow up, from child to parent, and the result flows down, from parent to child. A forest prints
as one line a tree, `child>parent` for each edge, and reads back equal:

    all_reduce of 3 ranks
    share 0.5 root 0: 1>0 2>0
    share 0.5 root 2: 1>2 0>1

`verify` holds a forest against its collective's specification and refuses with an arrow at the fault.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from collectives.engine.op import Collective
from collectives.errors import PlanError
from collectives.specification import SPECIFICATIONS, Specification

SHARE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Tree:
    """A root and each other member's parent.

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
        """The rank's parent; None for the root and for ranks that are no members."""
        return self._parents.get(rank)

    def children_of(self, rank: int) -> tuple[int, ...]:
        """The rank's children, ascending; empty for leaves and for ranks that are no members."""
        return self._children.get(rank, ())

    @cached_property
    def depth(self) -> int:
        """Edges on the longest way from a member to the root; 0 for a single rank."""
        level, depth = self.children_of(self.root), 0
        while level:
            level = tuple(child for rank in level for child in self.children_of(rank))
            depth += 1
        return depth


@dataclass(frozen=True)
class Forest:
    """Trees and the share of the message that each handles.

    Attributes:
        collective: what the trees carry out.
        size: ranks of the group, 0 to size - 1.
        root: the rank that has (broadcast) or gets (reduce) the message; None elsewhere.
        trees: at least one. All-to-all has a tree of two ranks for each ordered pair.
        shares: one for each tree, at least 0; they add up to 1. Where trees carry chunks (reduce_scatter, all_gather,
            all_to_all) only the ratio between trees of the same chunk counts, see `chunk_shares`.
    """

    collective: Collective
    size: int
    root: int | None
    trees: tuple[Tree, ...]
    shares: tuple[float, ...]

    @property
    def specification(self) -> Specification:
        return SPECIFICATIONS[self.collective]

    @cached_property
    def chunk_shares(self) -> tuple[float, ...]:
        """What part of its chunk each tree carries; the shares themselves where trees carry the whole message."""
        if not self.specification.chunked:
            return self.shares
        chunks = [self.specification.chunk_of(tree) for tree in self.trees]
        totals: dict[tuple[int, ...], float] = {}
        for chunk, share in zip(chunks, self.shares, strict=True):
            totals[chunk] = totals.get(chunk, 0.0) + share
        return tuple(share / totals[chunk] for chunk, share in zip(chunks, self.shares, strict=True))

    def __str__(self) -> str:
        lines = [_tree_line(tree, share) for tree, share in zip(self.trees, self.shares, strict=True)]
        return "\n".join([self.title, *lines])

    @property
    def title(self) -> str:
        at_root = "" if self.root is None else f" at root {self.root}"
        return f"{self.collective} of {self.size} ranks{at_root}"

    @classmethod
    def parse(cls, text: str, first_line: int = 1) -> Forest:
        """Read what `str` printed; blank lines are skipped. The result is not verified.

        Args:
            first_line: number of the text's first line in what it was cut from, for errors.

        Raises:
            PlanError: a line that is not one, with an arrow at the first character that does not fit.
        """
        numbered = enumerate((line.strip() for line in text.splitlines()), start=first_line)
        lines = [(number, line) for number, line in numbered if line] or [(first_line, "")]
        number, line = lines[0]
        title = re.fullmatch(r"(\w+) of (\d+) ranks(?: at root (\d+))?", line)
        if title is None or title[1] not in SPECIFICATIONS:
            wanted = f"wanted 'C of N ranks' or 'C of N ranks at root R', C one of {', '.join(SPECIFICATIONS)}"
            raise PlanError(f"forest, line {number}: {wanted}\n" + pointed(line, 0, max(1, len(line))))
        trees, shares = [], []
        for number, line in lines[1:]:
            tree, share = _parse_tree(line, number)
            trees.append(tree)
            shares.append(share)
        root = None if title[3] is None else int(title[3])
        return cls(title[1], int(title[2]), root, tuple(trees), tuple(shares))  # type: ignore[arg-type]


def verify(forest: Forest) -> None:
    """Check that the forest carries out its collective, by running it on sets of contributions.

    Raises:
        PlanError: names the tree, the rank and what is wrong, and shows the line with an arrow at the fault.
    """
    spec, size = forest.specification, forest.size
    if size < 1 or not forest.trees or len(forest.trees) != len(forest.shares):
        raise PlanError(
            f"{forest.title}: got {len(forest.trees)} trees and {len(forest.shares)} shares; wanted as many"
        )
    if spec.rooted != (forest.root is not None) or not 0 <= (forest.root or 0) < size:
        wanted = f"a rank from 0 to {size - 1}" if spec.rooted else "none"
        raise PlanError(f"{forest.title}: the root is {forest.root}; wanted {wanted}")
    for index, (tree, share) in enumerate(zip(forest.trees, forest.shares, strict=True)):
        if not (math.isfinite(share) and share >= 0):
            raise _fault(forest, index, "share", f"the share is {share:g}; wanted at least 0")
        if not 0 <= tree.root < size or (spec.rooted and tree.root != forest.root):
            wanted = f"the collective's root {forest.root}" if spec.rooted else f"a rank from 0 to {size - 1}"
            raise _fault(forest, index, "root", f"the tree's root is {tree.root}; wanted {wanted}")
        if not (spec.pairwise and _is_pair(tree, size)):
            _check_edges(forest, index)
            _run(forest, index)
    total = math.fsum(forest.shares)
    if abs(total - 1) > SHARE_TOLERANCE:
        raise _fault(
            forest, len(forest.trees) - 1, "share", f"with this tree the shares add up to {total:.9g}; wanted 1"
        )
    if spec.chunked:
        _check_chunks(forest)


def _is_pair(tree: Tree, size: int) -> bool:
    """Whether the tree joins its root and one other rank, which is all that a pairwise collective asks of it."""
    if len(tree.edges) != 1:
        return False
    ((child, parent),) = tree.edges
    return parent == tree.root != child and 0 <= child < size


def _check_edges(forest: Forest, index: int) -> None:
    """Every member but the root must be a child once, and every way up must end at the root."""
    tree, parents = forest.trees[index], dict[int, int]()
    for place, (child, parent) in enumerate(tree.edges):
        for rank in (child, parent):
            if not 0 <= rank < forest.size:
                raise _fault(forest, index, place, f"rank {rank} is foreign; the ranks are 0 to {forest.size - 1}")
        if child == tree.root:
            raise _fault(forest, index, place, f"rank {child} is the root but has a parent, {parent}")
        if child in parents:
            raise _fault(forest, index, place, f"rank {child} is counted twice: child of {parents[child]} and {parent}")
        parents[child] = parent
    members = {tree.root, *parents}
    wanted = range(forest.size)
    if forest.specification.pairwise:
        if len(tree.edges) != min(1, forest.size - 1):
            raise _fault(forest, index, "root", f"the tree of rank {tree.root} joins {len(members)} ranks; wanted 2")
        wanted = range(0)
    for rank in wanted:
        if rank not in members:
            raise _fault(forest, index, "root", f"rank {rank} is missing")
    safe = {tree.root}
    for place, (child, _) in enumerate(tree.edges):
        way = [child]
        while way[-1] not in safe:
            up = parents.get(way[-1])
            if up is None:
                raise _fault(forest, index, place, f"rank {way[-1]} is missing: a parent here, but nobody's child")
            if up in way:
                cycle = " > ".join(map(str, [*way[way.index(up) :], up]))
                raise _fault(forest, index, place, f"rank {child} is on a cycle or leads to one: {cycle}")
            way.append(up)
        safe.update(way)


def _run(forest: Forest, index: int) -> None:
    """Fold up and copy down as the engine would, then compare with what the collective promises."""
    spec, tree = forest.specification, forest.trees[index]
    held = spec.precondition(tree)
    parents, order = dict(tree.edges), [tree.root]
    for rank in order:
        order.extend(tree.children_of(rank))
    if spec.up:
        for rank in reversed(order[1:]):
            assert not held[parents[rank]] & held[rank], "folded twice, though every rank is a child once"
            held[parents[rank]] |= held[rank]
    if spec.down:
        for rank in order[1:]:
            held[rank] = held[parents[rank]]
    for rank, wanted in spec.postcondition(tree).items():
        if held[rank] != wanted:
            lacking = [other for other in tree.members if (wanted & ~held[rank]) >> other & 1]
            raise _fault(forest, index, "root", f"rank {rank} ends without the contributions of ranks {lacking}")


def _check_chunks(forest: Forest) -> None:
    """Every rank's (or pair's) chunk needs trees whose shares are not all 0."""
    spec, ranks = forest.specification, range(forest.size)
    pairs = spec.pairwise and forest.size > 1
    wanted = [(i, j) for i in ranks for j in ranks if i != j] if pairs else [(rank,) for rank in ranks]
    carried = {spec.chunk_of(tree) for tree, share in zip(forest.trees, forest.shares, strict=True) if share > 0}
    for chunk in wanted:
        if chunk not in carried:
            name = " to rank ".join(map(str, chunk))
            raise PlanError(f"{forest.title}: no tree carries the chunk of rank {name}\n" + pointed(forest.title, 0, 1))


def _tree_line(tree: Tree, share: float) -> str:
    edges = "".join(f" {child}>{parent}" for child, parent in tree.edges)
    return f"share {share!r} root {tree.root}:{edges}"


def _parse_tree(line: str, number: int) -> tuple[Tree, float]:
    head = re.match(r"share (\S+) root (-?\d+):", line)
    try:
        share = float(head[1]) if head else math.nan
    except ValueError:
        head = None
    if head is None:
        message = f"forest, line {number}: wanted 'share S root R: child>parent ...'"
        raise PlanError(f"{message}\n{pointed(line, 0, 1)}")
    edges = []
    for word in re.finditer(r"\S+", line[head.end() :]):
        edge = re.fullmatch(r"(-?\d+)>(-?\d+)", word[0])
        if edge is None:
            message = f"forest, line {number}: got {word[0]!r}, wanted child>parent"
            raise PlanError(f"{message}\n{pointed(line, head.end() + word.start(), len(word[0]))}")
        edges.append((int(edge[1]), int(edge[2])))
    return Tree(int(head[2]), tuple(edges)), share


def _fault(forest: Forest, index: int, place: str | int, what: str) -> PlanError:
    """A refusal of tree `index`; the arrow goes under the share, the root, or the edge with that number."""
    line = _tree_line(forest.trees[index], forest.shares[index])
    if isinstance(place, int):
        word = list(re.finditer(r"\S+>\S+", line))[place]
    else:
        word = next(iter(re.finditer(rf"(?<={place} )[^\s:]+", line)))
    return PlanError(f"{forest.title}, tree {index}: {what}\n{pointed(line, word.start(), len(word[0]))}")


def pointed(line: str, start: int, length: int) -> str:
    """For errors: the line, cut to a screen's width around the fault, and an arrow under the fault."""
    first = max(0, start - 60)
    shown = line[first : start + length + 40]
    return f"    {shown}\n    {' ' * (start - first)}{'^' * max(1, length)}"
