"""Lines that explain a topology, a forest and a comparison of options. `plan.py` puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from collectives.units import rate, seconds

if TYPE_CHECKING:
    from collectives.schedule.forest import Forest
    from collectives.topology import Topology

SHOWN = 8  # rows of a list that are printed; the rest is counted


def topology_lines(topology: Topology) -> list[str]:
    """Hosts, one line for all with the same numbers, then sites and pairs."""
    kinds: dict[str, list[str]] = {}
    for host in topology.hosts:
        ranks = f"{len(host.ranks)} rank{'s' if len(host.ranks) > 1 else ''}"
        rates = f"up {rate(host.up_bytes_per_s)}, down {rate(host.down_bytes_per_s)}"
        rest = f"memory {rate(host.memory_bytes_per_s)}, latency {seconds(host.latency_s)}"
        kinds.setdefault(f"{ranks}, {rates}, {rest}", []).append(host.name)
    lines = [f"  {len(names)} x {kind}: {_few(names)}" for kind, names in kinds.items()]
    for site in topology.sites:
        rates = f"up {rate(site.up_bytes_per_s)}, down {rate(site.down_bytes_per_s)}"
        lines.append(f"  site {site.name}, {rates}: {_few(list(site.hosts))}")
    lines += [f"  {pair.source} to {pair.target}: {rate(pair.bytes_per_s)}" for pair in topology.pairs[:SHOWN]]
    if len(topology.pairs) > SHOWN:
        lines.append(f"  and {len(topology.pairs) - SHOWN} more pairs")
    return lines


def forest_lines(topology: Topology, forest: Forest) -> list[str]:
    """One line for each of the first trees."""
    lines = []
    for tree, share in list(zip(forest.trees, forest.shares, strict=True))[:SHOWN]:
        children = [str(child) for child in tree.children_of(tree.root)]
        below = f", children {_few(children)}, depth {tree.depth}" if children else ""
        lines.append(f"  share {share:.4f}  root {tree.root} on {topology.host_of(tree.root).name}{below}")
    if len(forest.trees) > SHOWN:
        lines.append(f"  and {len(forest.trees) - SHOWN} more trees")
    return lines


def _few(names: list[str]) -> str:
    more = len(names) - SHOWN
    return " ".join(names) if more <= 1 else f"{' '.join(names[:SHOWN])} and {more} more"


def comparison_lines(chosen: str, chosen_s: float, options: Sequence[tuple[str, float]]) -> list[str]:
    """Each option's name and seconds, the fastest first, and how much longer than the chosen one it takes."""
    lines = []
    for name, taken_s in sorted(options, key=lambda option: option[1]):
        more = taken_s / chosen_s - 1 if chosen_s else 0.0
        mark = "chosen" if name == chosen else "the same" if abs(more) < 5e-4 else f"{more:+.1%}"
        lines.append(f"  {name:34} {seconds(taken_s):>10}  {mark}")
    return lines
