"""A job's plan as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from collectives.units import amount, rate, seconds
from launcher.planning.alternatives import Other
from launcher.planning.plan import JobPlan, PlannedRank

MAX_ROWS = 12  # of a list; the rest is only counted
UNKNOWN_RATIO = " (counted as none: its ratio depends on the model)"


def summary_lines(plan: JobPlan) -> list[str]:
    """The forecast and the nodes that are left out, for the start of a run."""
    lines = [_step(plan)]
    left = [effect.node for effect in plan.effects if not effect.used]
    return [*lines, *([f"left out: {', '.join(left)}; `launcher plan` says why"] if left else [])]


def as_text(plan: JobPlan) -> str:
    """The whole plan, as `launcher plan` prints it."""
    count = len(plan.ranks)
    nodes = len({rank.node for rank in plan.ranks})
    batch = f", {plan.demand.global_batch} samples a step" if plan.demand.global_batch else ""
    lines = [f"{plan.name}: {count} rank{'s' * (count > 1)} on {nodes} node{'s' * (nodes > 1)}{batch}", ""]
    lines += [*_ranks(plan), "", _step(plan), *_split(plan), *_collectives(plan)]
    lines += _section("nodes", _effects(plan))
    lines += _section("compared", [_compared(plan, other) for other in plan.others])
    lines += _section("what if", [_compared(plan, other) for other in plan.what_if])
    lines += _section("from", [f"links {plan.links}", *_speeds(plan)])
    lines += ["", f"planned in {seconds(plan.planning_s)}"]
    return "\n".join(lines)


def _section(title: str, rows: Sequence[str]) -> list[str]:
    if not rows:
        return []
    more = [f"and {len(rows) - MAX_ROWS} more"] if len(rows) > MAX_ROWS + 1 else []
    shown = rows[:MAX_ROWS] if more else rows
    return ["", title, *(f"  {row}" for row in [*shown, *more])]


def _ranks(plan: JobPlan) -> list[str]:
    lines = [f"  {'ranks':9} {'node':16} {'address':16} {'device':24} {'samples each':12}".rstrip()]

    def block(place: PlannedRank) -> tuple[str, str, float]:
        return place.node, place.device, place.share

    for (node, device, share), group in groupby(plan.ranks, block):
        places = list(group)
        first, last = places[0], places[-1]
        ranks = str(first.rank) if first is last else f"{first.rank} to {last.rank}"
        numbers = "" if first.index is None else f" {first.index}" + (f" to {last.index}" * (first is not last))
        samples = f"{share:g}" if plan.demand.global_batch else "as the script says"
        lines.append(f"  {ranks:9} {node:16} {first.address:16} {device + numbers:24} {samples}")
    return lines


def _step(plan: JobPlan) -> str:
    found = plan.forecast
    if not plan.demand.in_seconds:
        missing = "global_batch" if plan.demand.global_batch is None else "workload (parameters, tokens_per_sample)"
        return (
            f"no predicted seconds: the time of a sample is not known. Give {missing} in the job file; ranks are "
            f"compared by "
            "the speeds below."
        )
    return f"predicted step {seconds(found.step_s)}, {found.throughput:.4g} samples/s"


def _split(plan: JobPlan) -> list[str]:
    found, lines = plan.forecast, []
    if plan.demand.in_seconds:
        lines.append(f"  compute        {seconds(found.compute_s)}")
        if found.other_s:
            lines.append(f"  other          {seconds(found.other_s)}  (optimizer and data, by the last run)")
    if found.communication_s is None:
        return [*lines, "  communication  not known: give workload.parameters or workload.gradient_bytes"]
    hidden = ""
    if plan.demand.in_seconds:
        hidden = f", of which {seconds(max(0.0, found.communication_s - found.exposed_s))} behind backward"
    lines.append(f"  communication  {seconds(found.communication_s)}{hidden}")
    if found.bound_s is not None:
        at_bound = f"; a step with it {seconds(found.best_step_s)}" if plan.demand.in_seconds else ""
        lines.append(f"  its bound      {seconds(found.bound_s)}{at_bound}")
    return lines


def _collectives(plan: JobPlan) -> list[str]:
    found = plan.forecast
    if found.plan is None:
        return []
    return [
        f"collectives: all_reduce of {amount(found.plan.num_bytes, 'B')}, codec {found.codec}"
        f"{UNKNOWN_RATIO * (found.codec == 'low-rank')}, {found.plan.algorithm}, "
        f"{len(found.plan.forest.trees)} trees; the bottleneck is {_link(plan)}"
    ]


def _link(plan: JobPlan) -> str:
    name = plan.forecast.bottleneck
    found = next((link for link in plan.topology.links if link.name == name), None)
    return f"{name}, {rate(found.bytes_per_s)}" if found else "none"


def _effects(plan: JobPlan) -> list[str]:
    rows = []
    for effect in sorted(plan.effects, key=lambda effect: effect.used):
        if effect.throughput is None:
            rows.append(f"{effect.node}: " + ("needed" if effect.used else "left out: there is no room for it"))
            continue
        change = effect.throughput / plan.forecast.throughput
        if effect.used:
            rows.append(f"{effect.node}: without it the job is {_speedup(change)}")
        else:
            rows.append(f"leaving out {effect.node} makes the job {_speedup(1 / change)}")
    return rows + [f"{one.node}, {one.device}: not used, {one.why}" for one in plan.excluded]


def _speedup(ratio: float) -> str:
    if abs(ratio - 1) < 5e-4:
        return "as fast"
    if ratio >= 2:
        return f"{ratio:.1f} times as fast"
    return f"{abs(ratio - 1):.1%} {'faster' if ratio > 1 else 'slower'}"


def _compared(plan: JobPlan, other: Other) -> str:
    if other.forecast is None:
        return f"{other.what}: does not fit into memory"
    ratio = plan.forecast.throughput / other.forecast.throughput
    step = (
        f"step {seconds(other.forecast.step_s)}, {other.forecast.throughput:.4g} samples/s; " * plan.demand.in_seconds
    )
    return f"{other.what}, {other.ranks} ranks: {step}this plan is {_speedup(ratio)}"


def _speeds(plan: JobPlan) -> list[str]:
    by_source: dict[str, list[str]] = {}
    for place, source in plan.sources.items():
        by_source.setdefault(source, []).append(place)
    return [
        f"speeds of {', '.join(places[:4])}{' and others' * (len(places) > 4)}: {source}"
        for source, places in by_source.items()
    ]
