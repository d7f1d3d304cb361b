"""The forest on an event clock: how long a collective takes when slices queue, links are shared and windows are full.

In: a topology, a forest and a message size. Out: a `Simulation`. It models what the engine does:

- a tree's part is cut into slices. Where it goes up, a leaf has at most `slots` slices on their way, counted as in
  `window.py`, and sends the next one when one has come down (an empty message in collectives that only go
  up). An inner node sends a slice on once all its children's have arrived;
- each ordered pair of ranks has one connection, which carries one slice at a time, first come, first served;
- connections that cross a link share it as TCP flows do, by max-min fairness: the smallest rate is made as large as
  possible, then the next smallest;
- a slice arrives `latency_s` after its last byte was sent, and each message costs MESSAGE_S of the sending rank's
  thread and of the receiving rank's.

Left out: the time of folds (they run at the speed of memory), windows within a host where trees only go down, and TCP's
slow start.

The simulation's own time grows with events times connections. With more than MAX_TRANSFERS slices on connections, or
after MAX_WORK, it starts again with slices and windows twice as long, so that as many slices are on their way. Longer
slices fill and drain the pipeline more slowly than real ones; equation (6) of `cost.py` says by how much, and that is
subtracted. If trees would have fewer than MIN_SLICES slices, the result is that equation alone.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collectives.planning.cost import MESSAGE_S, SLICE_BYTES, Passage, forest_cost
from collectives.planning.explain import SHOWN
from collectives.planning.plan import Plan
from collectives.planning.window import default_window_bytes, tree_slots
from collectives.schedule.forest import Forest
from collectives.schedule.specification import SPECIFICATIONS
from collectives.topology import Topology
from collectives.units import seconds

MAX_TRANSFERS, MIN_SLICES = 1_000_000, 4
MAX_WORK = 1_500_000_000  # connections visited, over all steps of the clock
SAME_TIME = 1e-9  # events within this fraction of the clock happen together

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Simulation:
    """The result of a simulation.

    Attributes:
        seconds: until the last rank has its result.
        busy: for each link in the topology's order the fraction of that time, 0 to 1, during which it was busy.
        level: "slices" if each slice was simulated, "long slices" if slices were made longer, "equations" if nothing
            was simulated.
        transfers: slices on connections that were simulated; at level "equations", how many there would be.
        longer: factor by which slices were made longer.
    """

    seconds: float
    busy: tuple[float, ...]
    level: str
    transfers: int
    longer: int = 1


def simulate(
    topology: Topology,
    forest: Forest,
    num_bytes: int,
    *,
    slice_bytes: int = SLICE_BYTES,
    window_bytes: int | None = None,
    max_transfers: int = MAX_TRANSFERS,
) -> Simulation:
    """Run a verified forest for a message of `num_bytes`.

    Args:
        num_bytes: size as nccl-tests counts it, see `planner.plan`.
        slice_bytes, window_bytes: of the engine; None takes its default for the topology.
        max_transfers: limit of slices on connections that are simulated.

    Returns:
        `seconds` is infinite if the forest crosses a link without capacity.
    """
    parts = _tree_bytes(forest, num_bytes)
    passage = Passage(topology, forest.collective, forest.trees)
    moved = np.asarray(passage.loads @ parts)
    capacity = np.array([link.bytes_per_s for link in topology.links])
    transfers = _transfers(forest, parts, slice_bytes)
    if bool(((moved > 0) & (capacity == 0)).any()):
        return Simulation(math.inf, (0.0,) * len(capacity), "slices", transfers)
    predicted_s = forest_cost(topology, forest, slice_bytes=slice_bytes, passage=passage).seconds(num_bytes)
    window = window_bytes or default_window_bytes(topology)
    longer = 1
    while True:
        coarse = slice_bytes * longer
        if longer > 1 and parts.max() < MIN_SLICES * coarse:
            seconds, level, longer = predicted_s, "equations", 1
            break
        moves = _transfers(forest, parts, coarse)
        ran_s = _Clock(topology, forest, parts, coarse, window * longer).run() if moves <= max_transfers else None
        if ran_s is not None:
            # Long slices fill and drain the pipeline slower than real ones, by as much as equation (6) says.
            coarse_s = forest_cost(topology, forest, slice_bytes=coarse, passage=passage).seconds(num_bytes)
            seconds, transfers = ran_s - (coarse_s - predicted_s), moves
            level = "long slices" if longer > 1 else "slices"
            break
        longer *= 2
    busy = np.divide(moved, capacity * seconds, out=np.zeros(len(capacity)), where=capacity * seconds > 0)
    return Simulation(seconds, tuple(busy.tolist()), level, transfers, longer)


def _tree_bytes(forest: Forest, num_bytes: int) -> Floats:
    """Bytes that each tree carries: (1) of `cost.py`."""
    per_share = num_bytes / forest.size if forest.specification.chunked else num_bytes
    return per_share * np.array(forest.chunk_shares)


def _num_slices(part: float, slice_bytes: int) -> int:
    return max(1, math.ceil(part / slice_bytes - 1e-6))


def _transfers(forest: Forest, parts: Floats, slice_bytes: int) -> int:
    return sum(
        forest.specification.messages_per_edge * len(tree.edges) * _num_slices(float(part), slice_bytes)
        for tree, part in zip(forest.trees, parts, strict=True)
        if part > 0
    )


def fair_rates(routes: Ints, capacity: Floats) -> tuple[Floats, int]:
    """Max-min fair rates of flows, in bytes per second, and the number of rounds it took to find them.

    Progressive filling: each round finds the link that gives its flows the least, fixes their rates, takes those off
    the capacity of the other links that they cross, and goes on with the remaining flows.

    Args:
        routes: links that each flow crosses, as positions in `capacity`, padded with its last; shape (flows, k).
        capacity: of each link; the last one stands for the padding and is infinite.
    """
    rates, rounds = np.zeros(len(routes)), 0
    left, open_ = capacity.copy(), np.ones(len(routes), dtype=bool)
    while open_.any():
        rounds += 1
        crossing = np.bincount(routes[open_].ravel(), minlength=len(capacity))
        each = np.divide(left, crossing, out=np.full(len(left), math.inf), where=crossing > 0)
        each[-1] = math.inf
        least = each.min()
        tight = each <= least * (1 + 1e-9)
        fixed = open_ & tight[routes].any(axis=1)
        rates[fixed] = least
        open_ &= ~fixed
        left = left - least * np.bincount(routes[fixed].ravel(), minlength=len(capacity))
        left = np.maximum(left, 0.0)
    return rates, rounds


class _Clock:
    """Runs slices over connections. A message is (tree, slice, whether it goes up).

    Between events all rates are constant, so the clock jumps to the next one: a connection's last byte, or the moment
    when a rank's thread has handled a message. Rates change only when a connection becomes busy or idle, and the same
    sets of busy connections come back again and again, so their rates are kept.
    """

    def __init__(self, topology: Topology, forest: Forest, parts: Floats, slice_bytes: int, window_bytes: int) -> None:
        spec = SPECIFICATIONS[forest.collective]
        self.up, self.down = spec.up, spec.down
        self.trees = forest.trees
        self.sizes = [_slice_sizes(float(part), slice_bytes) for part in parts]
        total = max(1e-9, float(parts.sum()))
        self.slots = [tree_slots(float(part) / total, slice_bytes, window_bytes) for part in parts]
        self.now = 0.0
        self.thread_free_s = [0.0] * forest.size
        self.arrived: dict[tuple[int, int, int], int] = {}
        self.handled: list[tuple[float, int, int, tuple[int, int, bool]]] = []  # time, order, connection, message
        self.order = 0
        self._connect(topology, forest)

    def _connect(self, topology: Topology, forest: Forest) -> None:
        ends: dict[tuple[int, int], int] = {}
        for tree in forest.trees:
            for child, parent in tree.edges:
                for pair in ((child, parent),) * self.up + ((parent, child),):
                    ends.setdefault(pair, len(ends))
        self.index = ends
        self.ends = list(ends)
        sources, targets = np.array(self.ends or [(0, 0)], dtype=np.int64).T
        self.routes = topology.routes(sources, targets)
        self.latencies = [topology.latency_s(a, b) for a, b in self.ends]
        self.capacity = np.array([*(link.bytes_per_s for link in topology.links), math.inf])
        count = len(self.ends)
        self.queues: list[deque[tuple[int, int, bool]]] = [deque() for _ in range(count)]
        self.sending: list[tuple[int, int, bool] | None] = [None] * count
        self.left, self.rates = np.full(count, math.inf), np.ones(count)
        self.known_rates: dict[bytes, Floats] = {}
        self.changed = False
        self.work = 0

    def run(self) -> float | None:
        """Seconds until no slice is on its way; None if finding out would take more than MAX_WORK."""
        self._begin()
        while self.work <= MAX_WORK:
            self.work += len(self.ends)  # each step below visits all connections
            if self.changed:
                self._share_links()
            times = self.left / self.rates
            wire_s = self.now + (float(times.min()) if len(times) else math.inf)
            then = min(wire_s, self.handled[0][0] if self.handled else math.inf)
            if then == math.inf:
                return self.now
            self.left -= self.rates * (then - self.now)  # idle connections have infinitely many bytes left
            self.now = then
            slack = then * SAME_TIME
            # Equal transfers end together; handling them in one step saves most of the steps of symmetric forests.
            for connection in np.flatnonzero(self.left <= self.rates * slack).tolist():
                self._sent(connection)
            while self.handled and self.handled[0][0] <= then + slack:
                _, _, connection, message = heapq.heappop(self.handled)
                self._handle(self.ends[connection], message)
        return None

    def _begin(self) -> None:
        """Queue what can leave at once, in the engine's order: slice by slice, for each the trees in turn."""
        first = [len(sizes) for sizes in self.sizes]
        if self.up:
            first = [min(count, slots) for count, slots in zip(first, self.slots, strict=True)]
        for slice_index in range(max(first)):
            for t, tree in enumerate(self.trees):
                if slice_index >= first[t]:
                    continue
                if not self.up:
                    self._push_down(t, tree.root, slice_index)
                    continue
                for child, parent in tree.edges:
                    if not tree.children_of(child):
                        self._push(child, parent, (t, slice_index, True))

    def _push(self, source: int, target: int, message: tuple[int, int, bool]) -> None:
        connection = self.index[source, target]
        self.queues[connection].append(message)
        if self.sending[connection] is None:
            self._send_next(connection)
            self.changed = True

    def _push_down(self, t: int, rank: int, slice_index: int) -> None:
        for child in self.trees[t].children_of(rank):
            self._push(rank, child, (t, slice_index, False))

    def _send_next(self, connection: int) -> None:
        message = self.queues[connection].popleft()
        source = self.ends[connection][0]
        self.thread_free_s[source] = max(self.now, self.thread_free_s[source]) + MESSAGE_S
        self.sending[connection] = message
        t, slice_index, is_up = message
        self.left[connection] = self.sizes[t][slice_index] if is_up or self.down else 0.0  # 0: the empty message

    def _sent(self, connection: int) -> None:
        """The last byte was sent: the target's thread will handle it, and the connection takes its next slice."""
        message, target = self.sending[connection], self.ends[connection][1]
        assert message is not None
        at = max(self.now + self.latencies[connection], self.thread_free_s[target]) + MESSAGE_S
        self.thread_free_s[target] = at
        self.order += 1
        heapq.heappush(self.handled, (at, self.order, connection, message))
        if self.queues[connection]:
            self._send_next(connection)
        else:
            self.sending[connection], self.left[connection] = None, math.inf
            self.changed = True

    def _handle(self, ends: tuple[int, int], message: tuple[int, int, bool]) -> None:
        t, slice_index, is_up = message
        tree, rank = self.trees[t], ends[1]
        if not is_up:
            self._push_down(t, rank, slice_index)
            # A slice that has come down to a leaf frees its slot, so the slice that is `slots` later may go up.
            later, parent = slice_index + self.slots[t], tree.parent_of(rank)
            if self.up and not tree.children_of(rank) and later < len(self.sizes[t]) and parent is not None:
                self._push(rank, parent, (t, later, True))
            return
        count = self.arrived.pop((t, rank, slice_index), 0) + 1
        if count < len(tree.children_of(rank)):
            self.arrived[t, rank, slice_index] = count
            return
        parent = tree.parent_of(rank)
        if parent is not None:  # all children's slices are folded, so the sum goes on; at the root it turns round
            self._push(rank, parent, (t, slice_index, True))
        else:
            self._push_down(t, rank, slice_index)

    def _share_links(self) -> None:
        self.changed = False
        active = np.isfinite(self.left)
        key = np.packbits(active).tobytes()
        if key not in self.known_rates:
            if len(self.known_rates) > 1000:  # bounds memory
                self.known_rates.clear()
            rates = np.ones(len(active))
            rates[active], rounds = fair_rates(self.routes[active], self.capacity)
            self.known_rates[key] = rates
            self.work += rounds * len(active)
        self.rates = self.known_rates[key]


def _slice_sizes(part: float, slice_bytes: int) -> list[float]:
    """Bytes of each slice of a tree; [] if the tree carries nothing."""
    if part <= 0:
        return []
    count = _num_slices(part, slice_bytes)
    return [float(slice_bytes)] * (count - 1) + [part - (count - 1) * slice_bytes]


def explain_simulation(plan: Plan, simulation: Simulation) -> str:
    """Lines for people: simulated seconds, predicted seconds and the bound beside them, and the busiest links."""
    how = {
        "slices": f"{simulation.transfers} slices on connections, each simulated",
        "long slices": f"slices made {simulation.longer} times longer, so that {simulation.transfers} are simulated",
        "equations": f"not simulated, since {simulation.transfers} slices are too many; by the plan's equations",
    }
    lines = ["simulated", f"  seconds     {seconds(simulation.seconds)}  ({how[simulation.level]})"]
    if simulation.seconds:
        lines.append(f"  predicted   {plan.predicted_s / simulation.seconds:.3f} times that")
        if plan.bound_s is not None:
            lines.append(f"  bound       {plan.bound_s / simulation.seconds:.3f} times that")
    busiest = sorted(zip(simulation.busy, plan.topology.links, strict=True), key=lambda pair: -pair[0])
    lines += [f"  {share:6.1%} busy {link.name}" for share, link in busiest[:SHOWN] if share > 0]
    return "\n".join(lines)
