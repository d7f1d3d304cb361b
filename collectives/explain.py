"""A plan as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collectives.forest import Forest
    from collectives.planner import Plan
    from collectives.simulate import Simulation
    from collectives.topology import Topology

SHOWN = 8  # rows of a list before the rest is only counted


def explain(plan: Plan) -> str:
    """The topology, the forest, predicted seconds, the bound, the bottleneck, and what the losers would have taken."""
    codec = f", codec {plan.codec}" if plan.codec != "none" else ""
    lines = [
        f"{plan.forest.title}, {amount(plan.num_bytes, 'B')} (class up to {amount(4**plan.size_class, 'B')}){codec}",
        "",
    ]
    lines += ["topology", *_topology_lines(plan.topology), ""]
    lines += [f"forest: {plan.algorithm}", *_forest_lines(plan.topology, plan.forest), _fold_line(plan), ""]
    lines.append(f"predicted   {seconds(plan.predicted_s)}")
    if plan.bound_s is None:
        lines.append("bound       none: no network link is crossed")
    else:
        times = f" (predicted is {plan.predicted_s / plan.bound_s:.2f} times the bound)" if plan.bound_s else ""
        lines.append(f"bound       {seconds(plan.bound_s)}{times}")
    lines.append(f"bottleneck  {plan.bottleneck or 'none'}")
    lines += ["", "compared"]
    for name, taken in sorted(plan.options, key=lambda option: option[1]):
        more = taken / plan.predicted_s - 1 if plan.predicted_s else 0.0
        mark = "chosen" if name == plan.algorithm else "the same" if abs(more) < 5e-4 else f"{more:+.1%}"
        lines.append(f"  {name:34} {seconds(taken):>10}  {mark}")
    return "\n".join(lines)


def explain_simulation(plan: Plan, simulation: Simulation) -> str:
    """Simulated seconds beside the predicted ones and the bound, and the links that were busiest."""
    how = {
        "slices": f"{simulation.transfers} slices on connections, each followed",
        "long slices": f"slices made {simulation.longer} times longer, so that {simulation.transfers} are enough",
        "equations": f"not simulated: {simulation.transfers} slices are too many; these are the equations of the plan",
    }
    lines = ["simulated", f"  seconds     {seconds(simulation.seconds)}  ({how[simulation.level]})"]
    if simulation.seconds:
        lines.append(f"  predicted   {plan.predicted_s / simulation.seconds:.3f} times that")
        if plan.bound_s is not None:
            lines.append(f"  bound       {plan.bound_s / simulation.seconds:.3f} times that")
    busiest = sorted(zip(simulation.busy, plan.topology.links, strict=True), key=lambda pair: -pair[0])
    lines += [f"  {share:6.1%} busy {link.name}" for share, link in busiest[:SHOWN] if share > 0]
    return "\n".join(lines)


def _fold_line(plan: Plan) -> str:
    if not plan.forest.specification.up:
        return "  nothing is folded"
    if plan.canonical:
        return "  folds in canonical order: bits do not depend on sizes, offsets or shares"
    return "  does not fold in canonical order: the same on all ranks, but bits depend on sizes, offsets and shares"


def _topology_lines(topology: Topology) -> list[str]:
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


def _forest_lines(topology: Topology, forest: Forest) -> list[str]:
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


def rate(bytes_per_s: float) -> str:
    return amount(bytes_per_s, "B/s")


def amount(value: float, unit: str) -> str:
    """With a decimal prefix and three digits: 25 MB, 1.25 GB/s."""
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def seconds(value: float) -> str:
    """With four digits in s, ms or us."""
    if value >= 1:
        return f"{value:.4g} s"
    return f"{value * 1e3:.4g} ms" if value >= 1e-3 else f"{value * 1e6:.4g} us"
