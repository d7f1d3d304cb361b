"""Whether a forest folds in the canonical order: then a sum's bits depend on the contributions and on nothing else.

The canonical order adds the ranks of each host, ascending, and then the hosts' sums in order of lowest rank, from the
left. A node folds what it has in this order (`engine/table.py`), but a tree with several nodes between hosts adds up in
another grouping. Stars and stars of hosts, as in direct and hierarchical forests without sites, are canonical whatever
their shares; paths and general trees over three hosts and more are not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import reduce

from collectives.forest import Forest, Tree

Term = int  # the number of an expression: ranks' contributions first, then sums of two terms in order of appearance


def is_canonical(forest: Forest, hosts: Sequence[int]) -> bool:
    """Whether every tree that carries anything folds in the canonical order; True where nothing is folded.

    Args:
        hosts: for each rank the index of its host.
    """
    if not forest.specification.up:
        return True
    sums: dict[tuple[Term, Term], Term] = {}

    def plus(a: Term, b: Term) -> Term:
        return sums.setdefault((a, b), forest.size + len(sums))

    def folded(terms: Iterable[tuple[int, int, Term]]) -> Term:
        """Of (host, rank, term)."""
        by_host = itertools.groupby(sorted(terms), key=lambda term: term[0])
        return reduce(plus, [reduce(plus, [term for _, _, term in group]) for _, group in by_host])

    def at_root(tree: Tree) -> Term:
        order = [tree.root]
        for rank in order:
            order += tree.children_of(rank)
        held: dict[int, Term] = {}
        for rank in reversed(order):
            children = tree.children_of(rank)
            held[rank] = folded(
                [(hosts[rank], rank, rank), *((hosts[child], child, held[child]) for child in children)]
            )
        return held[tree.root]

    wanted = folded((hosts[rank], rank, rank) for rank in range(forest.size))
    used = (tree for tree, share in zip(forest.trees, forest.shares, strict=True) if share > 0)
    return all(at_root(tree) == wanted for tree in used)
