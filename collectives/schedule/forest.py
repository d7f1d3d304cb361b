"""Trees with shares: the one form in which every collective is described, printed and checked.

In a tree partial sums go up, from child to parent, and the result goes down, from parent to child. A forest prints as
one line for each tree, with `child>parent` for each edge, and reads back equal:

    all_reduce of 3 ranks
    share 0.5 root 0: 1>0 2>0
    share 0.5 root 2: 1>2 0>1

`verify` checks a forest against its collective's specification and shows a fault with a caret.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

from collectives.errors import PlanError, caret
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS, Specification
from collectives.schedule.tree import Tree


@dataclass(frozen=True)
class Forest:
    """Trees and the share of the message that each handles.

    Attributes:
        collective: which one.
        size: number of ranks in the group, 0 to size - 1.
        root: the rank that has (broadcast) or gets (reduce) the message; None for other collectives.
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
        """The fraction of its chunk that each tree carries; the shares themselves where trees carry the message."""
        if not self.specification.chunked:
            return self.shares
        chunks = [self.specification.chunk_of(tree) for tree in self.trees]
        totals: dict[tuple[int, ...], float] = {}
        for chunk, share in zip(chunks, self.shares, strict=True):
            totals[chunk] = totals.get(chunk, 0.0) + share
        return tuple(share / totals[chunk] for chunk, share in zip(chunks, self.shares, strict=True))

    def __str__(self) -> str:
        lines = [tree_line(tree, share) for tree, share in zip(self.trees, self.shares, strict=True)]
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
            PlanError: a malformed line, shown with a caret.
        """
        numbered = enumerate((line.strip() for line in text.splitlines()), start=first_line)
        lines = [(number, line) for number, line in numbered if line] or [(first_line, "")]
        number, line = lines[0]
        title = re.fullmatch(r"(\w+) of (\d+) ranks(?: at root (\d+))?", line)
        if title is None or title[1] not in SPECIFICATIONS:
            wanted = f"wanted 'C of N ranks' or 'C of N ranks at root R', C one of {', '.join(SPECIFICATIONS)}"
            raise PlanError(f"forest, line {number}: {wanted}\n" + caret(line, 0, max(1, len(line))))
        trees, shares = [], []
        for number, line in lines[1:]:
            tree, share = _parse_tree(line, number)
            trees.append(tree)
            shares.append(share)
        root = None if title[3] is None else int(title[3])
        return cls(title[1], int(title[2]), root, tuple(trees), tuple(shares))  # type: ignore[arg-type]


def tree_line(tree: Tree, share: float) -> str:
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
        raise PlanError(f"{message}\n{caret(line, 0, 1)}")
    edges = []
    for word in re.finditer(r"\S+", line[head.end() :]):
        edge = re.fullmatch(r"(-?\d+)>(-?\d+)", word[0])
        if edge is None:
            message = f"forest, line {number}: got {word[0]!r}, wanted child>parent"
            raise PlanError(f"{message}\n{caret(line, head.end() + word.start(), len(word[0]))}")
        edges.append((int(edge[1]), int(edge[2])))
    return Tree(int(head[2]), tuple(edges)), share
