"""Whether a forest folds in the canonical order: then a sum's bits depend on the contributions and on nothing else.

The canonical order adds the ranks of each host, ascending, then the hosts' sums of each site and the sites' in order of
lowest rank, from the left. A node folds what it has in this order (`engine/table.py`), but a tree with several nodes
between the hosts of a site adds up in another grouping. Stars, stars of hosts and stars of sites, as in direct and
hierarchical forests, are canonical whatever their shares; paths and general trees over three hosts and more are not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import reduce

from collectives.schedule.forest import Forest
from collectives.schedule.tree import Tree

Term = int  # the number of an expression: ranks' contributions first, then sums of two terms in order of appearance


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
        """Of (site, host, rank, term): those of each site, of each host in it, of each rank."""
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
