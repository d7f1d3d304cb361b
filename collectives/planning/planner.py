"""Chooses the forest: which trees, and which share of the message each gets.

Options are every algorithm with equal shares and with shares by linear program (`linear_program.py`). If none of them
comes near the bound, another is the trees of all algorithms together with those that the program's prices ask for
("mixed"). This search also gives a better bound for topologies with pairs, which `cost.bound_s` leaves out.

Of the options within NEAR of the fastest the plainest wins: predictions are not exact to a percent, a plain forest is
easier to understand, and equal links should give the direct forest with equal shares. Messages and hops are part of the
predicted cost, so short messages get shallow trees by the same comparison.

Each rank plans for itself and all must agree: nothing here is random, shares are rounded, and the forest depends on the
size class, not on the exact size. The class is planned at its upper end, 4**class bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from collectives.errors import PlanError
from collectives.planning.cost import Cost, Passage, bound_s, forest_cost
from collectives.planning.linear_program import grow, solve_shares
from collectives.planning.plan import Plan, size_class
from collectives.schedule.algorithms import candidates
from collectives.schedule.codec import PLAIN, Codec, codec_of
from collectives.schedule.forest import Forest
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.schedule.tree import Tree
from collectives.schedule.verify import verify
from collectives.topology import Topology

NEAR = 1.01  # an option is as good as the best if it takes at most so many times its seconds
SHORT_CLASS, NEAR_IF_SHORT = 7, 1.1  # the same in classes up to this one, 16 KiB: latencies are known less exactly


@dataclass(frozen=True)
class Option:
    """A forest that could be chosen.

    Attributes:
        algorithm: its name, with "planned shares" if the shares came from the linear program.
        cost: its predicted cost.
        bottleneck: name of the link that limits it; None if it crosses no link.
    """

    algorithm: str
    forest: Forest
    cost: Cost
    bottleneck: str | None


def plan(
    topology: Topology, collective: Collective, num_bytes: int, root: int | None = None, codec: str = "none"
) -> Plan:
    """The plan for one message; the costly part is cached for each topology, collective, root and codec.

    Args:
        num_bytes: size as nccl-tests counts it: the larger of what goes into a rank and what comes out.
        root: rank that has (broadcast) or gets (reduce) the message; None for other collectives.
        codec: name of the codec on network links; the message is float32 then.

    Raises:
        UsageError: there is no such codec.
        PlanError: a root for a collective that has none, no root for one that has, or no algorithm joins all ranks.
    """
    if SPECIFICATIONS[collective].rooted != (root is not None) or not 0 <= (root or 0) < topology.size:
        raise PlanError(f"{collective} of {topology.size} ranks: got root {root}")
    kind, effective = size_class(num_bytes), codec_of(codec)
    if len(topology.hosts) == 1 or (effective.narrow_only and not topology.narrow_between.any()):
        effective = PLAIN  # no link would carry it: one entry in the caches, and equal plans compare equal
    chosen, options, bound = _choice(topology, collective, kind, root, effective)
    return Plan(
        topology=topology,
        collective=collective,
        num_bytes=num_bytes,
        size_class=kind,
        forest=chosen.forest,
        algorithm=chosen.algorithm,
        predicted_s=chosen.cost.seconds(num_bytes),
        bound_s=None if bound is None else bound * num_bytes,
        bottleneck=chosen.bottleneck,
        options=tuple((option.algorithm, option.cost.seconds(num_bytes)) for option in options),
        codec=effective.name,
    )


def with_codec(made: Plan, codec: str) -> Plan:
    """The plan for the same float32 message with a codec on network links; see `schedule/codec.py`.

    Raises:
        UsageError: there is no such codec.
    """
    return plan(made.topology, made.collective, made.num_bytes, made.forest.root, codec)


@lru_cache(maxsize=128)
def _choice(
    topology: Topology, collective: Collective, kind: int, root: int | None, codec: Codec
) -> tuple[Option, tuple[Option, ...], float | None]:
    """The option to take, all of them, and the bound in seconds per byte."""
    if codec.ratio != 1 and not codec.narrow_only:
        # The same forest as without a codec. The fastest one with it may be deeper, so that values are rounded more
        # often. A codec divides the bytes on all network links by the same factor, so the former is still a fast one.
        plain, others, bound = _choice(topology, collective, kind, root, PLAIN)
        coded = tuple(replace(option, cost=forest_cost(topology, option.forest, codec)) for option in others)
        return coded[others.index(plain)], coded, None if bound is None else bound / codec.ratio
    options, bound = _options(topology, collective, root, codec)
    seconds = [option.cost.seconds(4**kind) for option in options]
    if not np.isfinite(min(seconds)):
        dead = [link.name for link in topology.links if not link.bytes_per_s]
        more = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
        raise PlanError(
            f"{collective} of {topology.size} ranks: no algorithm joins them without crossing "
            f"{', '.join(dead[:3])}{more}"
        )
    chosen = _plainest(options, seconds, kind)
    verify(chosen.forest)
    return chosen, options, bound


def _plainest(options: tuple[Option, ...], seconds: list[float], kind: int) -> Option:
    """The first option that is as good as the best; for short messages the one of those with the fewest messages.

    Latencies are measured to no better than a tenth, and fewer messages cost less CPU in any case.
    """
    if kind <= SHORT_CLASS:
        good = [each for each, taken in zip(options, seconds, strict=True) if taken <= NEAR_IF_SHORT * min(seconds)]
        return min(good, key=lambda option: option.cost.messages_s)
    return next(each for each, taken in zip(options, seconds, strict=True) if taken <= NEAR * min(seconds))


@lru_cache(maxsize=64)
def _options(
    topology: Topology, collective: Collective, root: int | None, codec: Codec
) -> tuple[tuple[Option, ...], float | None]:
    """Everything to compare, the plainest first, and the bound in seconds per byte."""
    offered = candidates(topology, collective, root)
    options: list[Option] = []
    for name, trees in offered.items():
        forest = Forest(collective, topology.size, root, tuple(trees), (1 / len(trees),) * len(trees))
        passage = Passage(topology, collective, trees, codec)
        taken = forest_cost(topology, forest, codec, passage=passage)
        options.append(Option(name, forest, taken, _busiest(topology, taken)))
        options += _planned(name, topology, collective, root, trees, passage, codec)
    bound = bound_s(topology, collective, 1, root)
    if bound is not None:
        bound /= codec.ratio  # as if all links were encoded: a codec for narrow links only cannot go below that
    if min(option.cost.s_per_byte for option in options) > NEAR * (bound or 0.0):
        trees = list(dict.fromkeys(tree for trees in offered.values() for tree in trees))
        grown, better_bound = grow(topology, collective, root, trees, codec)
        if len(offered) > 1 or grown:
            trees += grown
            passage = Passage(topology, collective, trees, codec)
            options += _planned("mixed", topology, collective, root, trees, passage, codec)
        if SPECIFICATIONS[collective].pairwise:
            better_bound = options[0].cost.s_per_byte  # it has one forest, which is its own bound
        if bound is not None and better_bound < math.inf:
            bound = max(bound, better_bound)
    return tuple(options), bound


def _busiest(topology: Topology, taken: Cost) -> str | None:
    """Name of the first link that is as busy as the busiest, up to float noise."""
    if not taken.s_per_byte:
        return None
    least = taken.s_per_byte * (1 - 1e-9)
    return next(link.name for link, busy in zip(topology.links, taken.busy_s_per_byte, strict=True) if busy >= least)


def _planned(
    name: str,
    topology: Topology,
    collective: Collective,
    root: int | None,
    trees: list[Tree],
    passage: Passage,
    codec: Codec,
) -> list[Option]:
    """An option of these trees with shares by linear program; [] if `solve_shares` finds none."""
    shared = solve_shares(topology, collective, trees, passage)
    if shared is None:
        return []
    forest = Forest(collective, topology.size, root, shared.trees, shared.shares)
    taken = forest_cost(topology, forest, codec)
    return [Option(f"{name}, planned shares", forest, taken, topology.links[shared.bottleneck].name)]
