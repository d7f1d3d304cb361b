"""Checks a forest against its collective's specification, by running it on sets of contributions.

It raises at the first fault and returns nothing, so a result cannot be ignored: a forest that passed can be run.
"""

from __future__ import annotations

import math
import re

from collectives.errors import PlanError, caret
from collectives.schedule.forest import Forest, tree_line
from collectives.schedule.tree import Tree

SHARE_TOLERANCE = 1e-6


def verify(forest: Forest) -> None:
    """Check that the forest carries out its collective, by running it on sets of contributions.

    Raises:
        PlanError: names the tree, the rank and the fault, and shows the line with a caret under it.
    """
    spec, size = forest.specification, forest.size
    if size < 1 or not forest.trees or len(forest.trees) != len(forest.shares):
        raise PlanError(
            f"{forest.title}: got {len(forest.trees)} trees and {len(forest.shares)} shares; wanted one for each tree"
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
    """Every member but the root must be a child once, and every path up must end at the root."""
    tree, parents = forest.trees[index], dict[int, int]()
    for place, (child, parent) in enumerate(tree.edges):
        for rank in (child, parent):
            if not 0 <= rank < forest.size:
                raise _fault(forest, index, place, f"rank {rank} is not one of the ranks 0 to {forest.size - 1}")
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
                raise _fault(forest, index, place, f"rank {way[-1]} is missing: a parent here, but no rank's child")
            if up in way:
                cycle = " > ".join(map(str, [*way[way.index(up) :], up]))
                raise _fault(forest, index, place, f"rank {child} is on a cycle or leads to one: {cycle}")
            way.append(up)
        safe.update(way)


def _run(forest: Forest, index: int) -> None:
    """Fold up and copy down as the engine would, then compare with the postcondition."""
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
    """Every rank's (or pair's) chunk needs a tree with a share above 0."""
    spec, ranks = forest.specification, range(forest.size)
    pairs = spec.pairwise and forest.size > 1
    wanted = [(i, j) for i in ranks for j in ranks if i != j] if pairs else [(rank,) for rank in ranks]
    carried = {spec.chunk_of(tree) for tree, share in zip(forest.trees, forest.shares, strict=True) if share > 0}
    for chunk in wanted:
        if chunk not in carried:
            name = " to rank ".join(map(str, chunk))
            raise PlanError(f"{forest.title}: no tree carries the chunk of rank {name}\n" + caret(forest.title, 0, 1))


def _fault(forest: Forest, index: int, place: str | int, what: str) -> PlanError:
    """An error in tree `index`; carets go under its share, its root, or the edge with the number `place`."""
    line = tree_line(forest.trees[index], forest.shares[index])
    if isinstance(place, int):
        word = list(re.finditer(r"\S+>\S+", line))[place]
    else:
        word = next(iter(re.finditer(rf"(?<={place} )[^\s:]+", line)))
    return PlanError(f"{forest.title}, tree {index}: {what}\n{caret(line, word.start(), len(word[0]))}")
