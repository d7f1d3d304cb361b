"""Whether a forest folds in the canonical order, so that the bits of a sum depend on the contributions alone.

Floating-point addition is not associative, so the bits of a sum depend on its grouping. The canonical order adds the
ranks of each host, ascending, then the sums of the hosts of each site, then those of the sites, each in order of lowest
rank, from the left. A node folds its operands in this order (`engine/table_builder.py`), but a tree in which hosts of a
site hang below each other groups them in another way. Stars, stars of hosts and stars of sites, as in direct and
hierarchical forests, are canonical whatever their shares; paths and general trees over three or more hosts are not.

Sums are compared as expressions: each gets a number, and equal pairs of terms get the same number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import reduce

from collectives.schedule.forest import Forest
from collectives.schedule.tree import Tree

Term = int  # number of an expression: the ranks' contributions first, then sums of two terms in order of appearance


def is_canonical(forest: Forest, homes: Sequence[tuple[int, int]]) -> bool:
    """Whether every tree that carries anything folds in the canonical order; True where nothing is folded.

    Args:
        homes: for each rank the index of its site and of its host, see `Topology.homes`.
    """
    if not forest.specification.up:
        return True
    sums: dict[tuple[Term, Term], Term] = {}

    def plus(a: Term, b: Term) -> Term:
        return sums.setdefault((a, b), forest.size + len(sums))

    def folded(terms: Iterable[tuple[int, int, int, Term]], level: int = 0) -> Term:
        """The canonical sum of operands (site, host, rank, term): by site, in it by host, in it by rank."""
        by_part = itertools.groupby(sorted(terms), key=lambda term: term[level])
        parts = [list(group) for _, group in by_part]
        return reduce(plus, [part[0][-1] if level == 2 else folded(part, level + 1) for part in parts])

    def at_root(tree: Tree) -> Term:
        order = [tree.root]
        for rank in order:
            order += tree.children_of(rank)
        held: dict[int, Term] = {}
        for rank in reversed(order):
            children = tree.children_of(rank)
            held[rank] = folded(
                [(*homes[rank], rank, rank), *((*homes[child], child, held[child]) for child in children)]
            )
        return held[tree.root]

    wanted = folded((*homes[rank], rank, rank) for rank in range(forest.size))
    used = (tree for tree, share in zip(forest.trees, forest.shares, strict=True) if share > 0)
    return all(at_root(tree) == wanted for tree in used)
