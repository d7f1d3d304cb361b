"""The page: (files of the run, story) -> values of the template -> HTML. Reads nothing but the template.

The template decides how things look, this module what is shown, so `content` can be tested without HTML. The template
escapes all values (`autoescape`) and fails on an unknown one (`StrictUndefined`) instead of showing nothing.
"""

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

MAX_ROWS = 40  # of the table of steps
MAX_MOMENTS = 200  # of the timeline
MAX_SHARES = 16  # of a plan's trees
MAX_TEXT = 600  # characters of a moment
_STATUS = {"finished": "good", "failed": "bad", "stopped": "warn"}
_MARKS = {"start": "started", "step": "training", "plan": "plan", "note": "note", "trouble": "trouble", "end": "ended"}


def render(record: RunRecord, story: Story, now: float | None = None) -> str:
    """The page as HTML. `now` is the time that it gives as its own, in seconds since 1970; None: the clock's."""
    return _template().render(content(record, story, time.time() if now is None else now))


def content(record: RunRecord, story: Story, now: float) -> dict[str, Any]:
    """The values of the template."""
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
    """Begin and end of the timeline, by the events. Up to now if the run seems to go on: it has no summary, a rank is
    running, and the last event is less than a minute old."""
    begin, end = story.first_at, story.last_at
    if not summary and end is not None and any(rank.state == "running" for rank in story.ranks.values()):
        end = now if now - end < 60 else end
    return begin, end


def _facts(
    record: RunRecord, story: Story, begin: float | None, end: float | None, now: float
) -> list[tuple[str, str]]:
    """The line under the title: names and values."""
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
        facts.append(("state", f"no summary when this page was made: it is going on, or was cut off{ago}"))
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
    """The large numbers: name, value, and a remark below it."""
    known = story.tally.figures()
    timed = known["step_s"] is not None
    waiting = f"{units.seconds(known['comm_wait_s'])} a step" if timed else ""
    figures = [
        *_progress_figures(summary, story, known),
        ("step time", units.seconds(known["step_s"]), "on average" if timed else ""),
        ("waiting", units.percent(known["comm_wait_share"]), waiting),
    ]
    if known["tokens_per_s"]:
        figures.append(("speed", units.number(known["tokens_per_s"]), "tokens a second"))
    if summary.get("seconds_to_first_step"):
        figures.append(("first step", units.seconds(summary["seconds_to_first_step"]), "after the start"))
    return figures


def _progress_figures(summary: Mapping[str, Any], story: Story, known: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Steps and losses."""
    of = story.tally.last.of if story.tally.last else None
    loss, first_loss = known["final_loss"], known["first_loss"]
    first = f"from {units.number(first_loss)}" if loss is not None and first_loss is not None else ""
    figures = [
        ("steps", f"{known['steps']:,}" if known["steps"] else units.NOTHING, f"of {of:,}" if of else ""),
        ("loss", units.number(loss), first),
    ]
    heldout = summary.get("heldout_loss", story.tally.notes.get("heldout_loss"))
    if isinstance(heldout, int | float):
        figures.append(("held-out loss", units.number(heldout), ""))
    return figures


def _table(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """The curves as a table."""
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
    """The plan: algorithm, prediction, bound, the predicted times of all algorithms as bars, shares of the trees."""
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
        "shares": shares[:MAX_SHARES],
        "more_shares": max(0, len(shares) - MAX_SHARES),
    }


def _moments(story: Story, begin: float | None) -> list[tuple[str, int | None, str, str, str]]:
    """Time since the begin, rank, kind, name of the kind, and text. If there are too many, troubles and plans are
    shown."""
    shown = story.moments
    if len(shown) > MAX_MOMENTS:
        important = [moment for moment in shown if moment.kind in ("trouble", "plan")][:MAX_MOMENTS]
        shown = important or shown[:MAX_MOMENTS]
    return [
        (
            f"{moment.at - (begin or moment.at):,.1f} s",
            moment.rank,
            moment.kind,
            _MARKS[moment.kind],
            moment.text[:MAX_TEXT],
        )
        for moment in shown
    ]


def _lane_ticks(begin: float | None, end: float | None) -> list[tuple[float, str]]:
    if begin is None or end is None or end <= begin:
        return []
    return [(25.0 * quarter, units.seconds((end - begin) * quarter / 4)) for quarter in range(5)]


def _notes(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    notes = summary.get("notes") or {}
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in notes.items()]
