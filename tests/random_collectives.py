"""A random mix of collectives against the oracle: kinds, sizes, dtypes, reductions, sub-groups, async, strides.

    python -m tests.random_collectives --count 1000 --seed 0

Every process draws the same cases from the seed and can make every rank's input, so each knows what it should get.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

import collectives
from tests import naive
from tests.processes import run

KINDS = (
    "all_reduce", "all_reduce_coalesced", "reduce", "broadcast", "all_gather", "all_gather_single", "reduce_scatter",
    "reduce_scatter_single", "all_to_all", "all_to_all_single", "gather", "scatter", "barrier",
)  # fmt: skip
SIZES = (0, 1, 3, 64, 100, 10_007)
LARGE = (100_003, 262_144)
REDUCING = ("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_single")
IN_FLIGHT = 4


@dataclass(frozen=True)
class Case:
    """One collective: the same value in every process."""

    number: int
    kind: str
    dtype: str
    op: str
    counts: tuple[int, ...]
    members: tuple[int, ...]
    root: int
    asynchronous: bool
    strided: bool

    def __str__(self) -> str:
        how = f"{'async ' if self.asynchronous else ''}{'strided ' if self.strided else ''}"
        return (
            f"#{self.number} {how}{self.kind} {self.op} {self.dtype} {self.counts} over {self.members} root {self.root}"
        )


def draw(number: int, seed: int, groups: list[tuple[int, ...]]) -> Case:
    rng = np.random.default_rng([seed, number])
    members = groups[rng.integers(len(groups))]
    dtype = str(rng.choice(naive.DTYPES))
    kind = str(rng.choice(KINDS))
    sizes = SIZES if rng.random() < 0.9 else LARGE
    same = kind.endswith("single") and kind != "all_to_all_single"
    first = int(rng.choice(sizes))
    counts = tuple(first if same or sizes is LARGE else int(rng.choice(sizes)) for _ in members)
    return Case(
        number=number,
        kind=kind,
        dtype=dtype,
        op=str(rng.choice(naive.reductions_of(dtype))),
        counts=counts,
        members=members,
        root=int(rng.integers(len(members))),
        asynchronous=bool(rng.random() < 0.5),
        strided=bool(rng.random() < 0.3),
    )


def chunk(case: Case, seed: int, giver: int, part: int, count: int) -> naive.Array:
    """Part `part` of what group rank `giver` puts in."""
    return naive.values(case.dtype, count, np.random.default_rng([seed, case.number, giver, part]))


def to_tensor(values: naive.Array, dtype: str, strided: bool) -> Tensor:
    tensor = torch.from_numpy(values.copy()).to(getattr(torch, dtype))
    if not strided or tensor.dim() == 0:
        return tensor
    wide = torch.zeros((len(tensor), 2), dtype=tensor.dtype)
    wide[:, 0] = tensor
    return wide[:, 0]


def to_array(tensor: Tensor) -> naive.Array:
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).contiguous().numpy()


class Running:
    """A case under way on this rank: what it should give, and a way to wait for it."""

    def __init__(self, case: Case, seed: int, group: Any, me: int) -> None:
        self.case, self.group, self.me, self.size = case, group, me, len(case.members)
        self.given = [
            [chunk(case, seed, giver, part, self._count(giver, part)) for part in range(self.size)]
            for giver in range(self.size)
        ]
        self.expected: list[naive.Array]
        self.outputs: list[Tensor]
        self.work = getattr(self, f"_{case.kind}")()

    def _count(self, giver: int, part: int) -> int:
        """All-to-all's parts differ by pair, the others' by part only or by giver only."""
        kind, counts = self.case.kind, self.case.counts
        if kind.startswith("all_to_all"):
            return counts[(giver + 2 * part) % self.size]
        if kind in ("all_gather", "gather"):
            return counts[giver]
        return counts[part] if kind in ("reduce_scatter", "scatter") else counts[0]

    def check(self) -> None:
        if self.work is not None:
            self.work.wait()
        for index, (output, expected) in enumerate(zip(self.outputs, self.expected, strict=True)):
            got = to_array(output)
            if got.shape != expected.shape or not np.array_equal(got, expected):
                wrong = np.flatnonzero(got != expected) if got.shape == expected.shape else np.array([])
                raise AssertionError(
                    f"{self.case}: group rank {self.me}, output {index}: {len(wrong)} of {expected.size} elements wrong"
                    + (f", first at {wrong[0]}: got {got[wrong[0]]}, wanted {expected[wrong[0]]}" if len(wrong) else "")
                )

    def _tensor(self, values: naive.Array) -> Tensor:
        return to_tensor(values, self.case.dtype, self.case.strided)

    def _room(self, count: int) -> Tensor:
        return self._tensor(np.zeros(count, naive.numpy_dtype(self.case.dtype)))

    def _op(self) -> Any:
        return getattr(dist.ReduceOp, self.case.op.upper())

    def _first(self) -> list[naive.Array]:
        return [parts[0] for parts in self.given]

    def _how(self) -> dict[str, Any]:
        return {"group": self.group, "async_op": self.case.asynchronous}

    def _global(self, root: int) -> int:
        return self.case.members[root]

    def _all_reduce(self) -> Any:
        self.outputs = [self._tensor(self.given[self.me][0])]
        self.expected = [naive.all_reduce(self._first(), self.case.op, self.case.dtype)[self.me]]
        return dist.all_reduce(self.outputs[0], self._op(), **self._how())

    def _all_reduce_coalesced(self) -> Any:
        self.outputs = [self._tensor(part) for part in self.given[self.me]]
        self.expected = [
            naive.fold([parts[index] for parts in self.given], self.case.op, self.case.dtype)
            for index in range(self.size)
        ]
        options = dist.AllreduceCoalescedOptions()
        options.reduceOp, options.asyncOp = self._op(), self.case.asynchronous
        return self.group.allreduce_coalesced(self.outputs, options)

    def _reduce(self) -> Any:
        self.outputs = [self._tensor(self.given[self.me][0])]
        self.expected = [naive.reduce(self._first(), self.case.op, self.case.dtype, self.case.root)[self.me]]
        return dist.reduce(self.outputs[0], self._global(self.case.root), self._op(), **self._how())

    def _broadcast(self) -> Any:
        self.outputs = [self._tensor(self.given[self.me][0])]
        self.expected = [naive.broadcast(self._first(), self.case.root)[self.me]]
        return dist.broadcast(self.outputs[0], self._global(self.case.root), **self._how())

    def _all_gather(self) -> Any:
        self.expected = naive.all_gather(self._first())[self.me]
        self.outputs = [self._room(len(each)) for each in self.expected]
        return dist.all_gather(self.outputs, self._tensor(self.given[self.me][0]), **self._how())

    def _all_gather_single(self) -> Any:
        self.expected = [np.concatenate(self._first())]
        self.outputs = [self._room(len(self.expected[0]))]
        return _single("all_gather")(self.outputs[0], self._tensor(self.given[self.me][0]), **self._how())

    def _reduce_scatter(self) -> Any:
        self.expected = [naive.reduce_scatter(self.given, self.case.op, self.case.dtype)[self.me]]
        self.outputs = [self._room(len(self.expected[0]))]
        given = [self._tensor(part) for part in self.given[self.me]]
        return dist.reduce_scatter(self.outputs[0], given, self._op(), **self._how())

    def _reduce_scatter_single(self) -> Any:
        self.expected = [naive.reduce_scatter(self.given, self.case.op, self.case.dtype)[self.me]]
        self.outputs = [self._room(len(self.expected[0]))]
        given = self._tensor(np.concatenate(self.given[self.me]))
        return _single("reduce_scatter")(self.outputs[0], given, self._op(), **self._how())

    def _all_to_all(self) -> Any:
        self.expected = naive.all_to_all(self.given)[self.me]
        self.outputs = [self._room(len(each)) for each in self.expected]
        return dist.all_to_all(self.outputs, [self._tensor(part) for part in self.given[self.me]], **self._how())

    def _all_to_all_single(self) -> Any:
        parts = naive.all_to_all(self.given)[self.me]
        self.expected = [np.concatenate(parts)]
        self.outputs = [self._room(len(self.expected[0]))]
        given = self._tensor(np.concatenate(self.given[self.me]))
        received, sent = [len(part) for part in parts], [len(part) for part in self.given[self.me]]
        return dist.all_to_all_single(self.outputs[0], given, received, sent, **self._how())

    def _gather(self) -> Any:
        self.expected = naive.gather(self._first(), self.case.root)[self.me] or []
        self.outputs = [self._room(len(each)) for each in self.expected]
        given, root = self._tensor(self.given[self.me][0]), self._global(self.case.root)
        return dist.gather(given, self.outputs if self.me == self.case.root else None, root, **self._how())

    def _scatter(self) -> Any:
        self.expected = [naive.scatter(self.given[self.case.root])[self.me]]
        self.outputs = [self._room(len(self.expected[0]))]
        parts = [self._tensor(part) for part in self.given[self.me]] if self.me == self.case.root else None
        return dist.scatter(self.outputs[0], parts, self._global(self.case.root), **self._how())

    def _barrier(self) -> Any:
        self.expected, self.outputs = [], []
        return dist.barrier(**self._how())


def _single(collective: str) -> Callable[..., Any]:
    """The single-tensor form under the name that this torch prefers."""
    old = {"all_gather": "all_gather_into_tensor", "reduce_scatter": "reduce_scatter_tensor"}[collective]
    return getattr(dist, f"{collective}_single", None) or getattr(dist, old)  # type: ignore[no-any-return]


def worker(rank: int, size: int, store: Any, backend: str, first: int, count: int, seed: int) -> int:
    """Run cases `first` to ``first + count``; returns how many this rank took part in."""
    collectives.configure(backend=backend)
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    memberships = [tuple(range(size)), tuple(range(size - 1)), (0, size - 1), tuple(range(1, size))][
        : 2 if size < 3 else 4
    ]
    groups = {members: dist.new_group(list(members)) for members in memberships}
    in_flight: list[Running] = []
    taken = 0
    for number in range(first, first + count):
        case = draw(number, seed, memberships)
        if rank not in case.members:
            continue
        taken += 1
        in_flight.append(Running(case, seed, groups[case.members], case.members.index(rank)))
        while len(in_flight) > IN_FLIGHT or (in_flight and not case.asynchronous):
            in_flight.pop(0).check()
    for running in in_flight:
        running.check()
    dist.destroy_process_group()
    return taken


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="number of collectives")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=4, help="number of processes")
    parser.add_argument("--backend", default="narrowgauge", choices=["narrowgauge", "gloo"])
    parser.add_argument("--deadline-s", type=float, default=600.0)
    given = parser.parse_args(arguments)
    started = time.perf_counter()
    edges = [*range(0, given.count, 500), given.count]
    for first, end in pairwise(edges):
        run(worker, given.size, given.backend, first, end - first, given.seed, deadline_s=given.deadline_s)
        print(f"{end} of {given.count} right after {time.perf_counter() - started:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
