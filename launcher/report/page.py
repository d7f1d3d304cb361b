"""The page itself: what was read and added up -> the values of the template -> HTML. No I/O but the template's."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jinja2

from launcher import units
from launcher.report import diagram
from launcher.report.charts import Chart, loss_chart, speed_chart, time_chart
from launcher.report.network import network
from launcher.report.ranks import lanes, rows
from launcher.report.record import RunRecord
from launcher.report.story import Point, Story, thinned

MAX_ROWS = 40
MAX_MOMENTS = 200
_STATUS = {"finished": "good", "failed": "bad", "stopped": "warn"}
_MARKS = {"start": "started", "step": "training", "plan": "plan", "note": "note", "trouble": "trouble", "end": "ended"}


def render(record: RunRecord, story: Story, now: float | None = None) -> str:
    """The whole page. `now` is the time that it says it was made at, in seconds since 1970; None takes the clock."""
    return _template().render(content(record, story, time.time() if now is None else now))


def content(record: RunRecord, story: Story, now: float) -> dict[str, Any]:
    """Everything that the template shows."""
    summary, plan_file = record.summary or {}, record.plan or {}
    plan = plan_file.get("collectives") or story.tally.plan
    seats = plan_file.get("seats") or ()
    begin, end = _span(summary, story, now)
    net = network(seats, plan)
    drawn: Sequence[Chart | None] = (loss_chart(story.points), time_chart(story.points), speed_chart(story.points))
    return {
        "title": summary.get("name") or record.name,
        "folder": record.name,
        "status": summary.get("status") or "unfinished",
        "status_look": _STATUS.get(str(summary.get("status")), "warn"),
        "facts": _facts(record, story, begin, end, now),
        "failure": _failure(record, summary),
        "figures": _figures(summary, story),
        "charts": [chart for chart in drawn if chart is not None],
        "table": _table(story.points),
        "ranks": rows(story, seats),
        "network": net,
        "drawings": [("narrow", diagram.draw(net, 1)), ("wide", diagram.draw(net, 2))] if net else [],
        "plan": _plan(plan) if plan else None,
        "backend": summary.get("backend"),
        "lanes": lanes(story, seats, begin, end) if begin is not None and end is not None else [],
        "lane_ticks": _lane_ticks(begin, end),
        "moments": _moments(story, begin),
        "logs": record.logs,
        "traces": record.traces,
        "config": record.config,
        "versions": summary.get("versions") or {},
        "notes": _notes(summary),
        "made_at": units.moment(now),
        "units": units,
    }


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("launcher.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html")


def _span(summary: Mapping[str, Any], story: Story, now: float) -> tuple[float | None, float | None]:
    """Begin and end of the timeline: of the events; up to now if the run goes on, by the look of it."""
    begin, end = story.first_at, story.last_at
    if not summary and end is not None and any(rank.state == "running" for rank in story.ranks.values()):
        end = now if now - end < 60 else end
    return begin, end


def _facts(
    record: RunRecord, story: Story, begin: float | None, end: float | None, now: float
) -> list[tuple[str, str]]:
    """The line under the title: word and value."""
    summary, seats = record.summary or {}, (record.plan or {}).get("seats") or ()
    hosts = len({seat["host"] for seat in seats})
    facts = [("run", record.name)]
    if begin is not None and end is not None:
        facts += [("started", units.moment(begin)), ("workers ran", units.seconds(end - begin))]
    if summary.get("wall_s"):
        facts.append(("in all", units.seconds(summary["wall_s"])))
    if seats:
        emulated = "emulated " if any(seat.get("emulated") for seat in seats) else ""
        facts.append(("ranks", f"{len(seats)} on {hosts} {emulated}host{'s' if hosts > 1 else ''}"))
    if summary.get("backend"):
        facts.append(("backend", str(summary["backend"])))
    if not summary:
        ago = f"; its last event was {units.seconds(max(now - story.last_at, 0.0))} before" if story.last_at else ""
        facts.append(("state", f"no summary when this page was made: it goes on, or was cut off{ago}"))
    return facts


def _failure(record: RunRecord, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    failure = summary.get("failure")
    if not failure:
        return None
    rank = failure.get("rank")
    who = "the run" if rank is None else f"rank {rank}" + (f" on {failure['host']}" if failure.get("host") else "")
    return {
        "who": who,
        "what": failure.get("what"),
        "rank": rank,
        "log": record.logs.get(rank) if rank is not None else None,
        "others": [
            f"rank {other.get('rank')} on {other.get('host')}: {other.get('what')}"
            for other in failure.get("others") or ()
        ],
    }


def _figures(summary: Mapping[str, Any], story: Story) -> list[tuple[str, str, str]]:
    """The large numbers: name, value, and what belongs to it in small."""
    known = story.tally.figures()
    loss = known["final_loss"]
    first = f"from {units.number(known['first_loss'])}" if known["first_loss"] is not None else ""
    timed = known["step_s"] is not None
    of = story.tally.last.of if story.tally.last else None
    figures = [
        ("steps", f"{known['steps']:,}" if known["steps"] else units.NOTHING, f"of {of:,}" if of else ""),
        ("loss", units.number(loss), first if loss is not None else ""),
    ]
    heldout = summary.get("heldout_loss", story.tally.notes.get("heldout_loss"))
    if isinstance(heldout, int | float):
        figures.append(("held-out loss", units.number(heldout), ""))
    figures += [
        ("step time", units.seconds(known["step_s"]), "on average" if timed else ""),
        (
            "waiting",
            units.percent(known["comm_wait_share"]),
            f"{units.seconds(known['comm_wait_s'])} a step" if timed else "",
        ),
    ]
    if known["tokens_per_s"]:
        figures.append(("speed", units.number(known["tokens_per_s"]), "tokens a second"))
    if summary.get("seconds_to_first_step"):
        figures.append(("first step", units.seconds(summary["seconds_to_first_step"]), "after the start"))
    return figures


def _table(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """The curves in numbers."""
    return [
        (
            f"{point.step:,}",
            units.number(point.loss),
            *(
                units.seconds(value / point.steps if point.steps else None)
                for value in (point.seconds, point.compute_s, point.wait_s, point.rest_s)
            ),
            units.number(point.tokens / point.seconds if point.seconds and point.tokens else None),
        )
        for point in thinned(list(points), MAX_ROWS)
    ]


def _plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Algorithm, prediction, bound, the losers as bars, shares."""
    options = [(str(name), float(taken)) for name, taken in (plan.get("options") or {}).items()]
    longest = max([taken for _, taken in options] + [float(plan.get("predicted_s") or 0.0)], default=0.0) or 1.0
    chosen, bound = plan.get("algorithm"), plan.get("bound_s")
    shares = [
        (f"root {share['root']}" if share.get("root") is not None else "tree", float(share["share"]))
        for share in plan.get("shares") or ()
        if share["share"] > 0
    ]
    return {
        "what": f"{plan.get('collective', 'all_reduce')} of {units.data(plan.get('num_bytes'))}",
        "algorithm": chosen,
        "predicted": units.seconds(plan.get("predicted_s")),
        "bound": units.seconds(bound) if bound else None,
        "over_bound": units.percent(plan["predicted_s"] / bound - 1) if bound and plan.get("predicted_s") else None,
        "bottleneck": plan.get("bottleneck"),
        "options": [
            (name, units.seconds(taken), 100 * taken / longest, name == chosen)
            for name, taken in sorted(options, key=lambda option: option[1])
        ],
        "bound_at": 100 * bound / longest if bound else None,
        "shares": shares[:16],
        "more_shares": max(0, len(shares) - 16),
    }


def _moments(story: Story, begin: float | None) -> list[tuple[str, int | None, str, str, str]]:
    """When (since the begin), rank, kind, its name, text. Where there are too many, troubles and plans stay."""
    shown = story.moments
    if len(shown) > MAX_MOMENTS:
        important = [moment for moment in shown if moment.kind in ("trouble", "plan")][:MAX_MOMENTS]
        shown = important or shown[:MAX_MOMENTS]
    return [
        (f"{moment.at - (begin or moment.at):,.1f} s", moment.rank, moment.kind, _MARKS[moment.kind], moment.text[:600])
        for moment in shown
    ]


def _lane_ticks(begin: float | None, end: float | None) -> list[tuple[float, str]]:
    if begin is None or end is None or end <= begin:
        return []
    return [(25.0 * quarter, units.seconds((end - begin) * quarter / 4)) for quarter in range(5)]


def _notes(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    notes = summary.get("notes") or {}
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in notes.items()]
