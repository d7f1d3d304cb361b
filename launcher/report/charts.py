"""The curves of the page: points of the story -> charts, plain values that the template draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from launcher import units
from launcher.report.geometry import Scale, band, high_end, line, stacked
from launcher.report.story import Point


@dataclass(frozen=True)
class Tick:
    """A label at an axis; `at` in percent of the axis, from the left or the top."""

    at: float
    text: str


@dataclass(frozen=True)
class Shape:
    """A curve or a filled band: its path, and the name of its colour in the page."""

    path: str
    colour: str
    filled: bool
    name: str


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        summary: the chart in a sentence, for screen readers and for a chart that is not drawn.
        readings: JSON for the tooltip: for each point its x in percent of the width, and lines of text.
        cut: what lies above the upper edge and is not shown; None if nothing does.
    """

    title: str
    unit: str
    summary: str
    shapes: tuple[Shape, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    readings: str
    cut: str | None = None


def loss_chart(points: Sequence[Point]) -> Chart | None:
    """Loss over steps; None if none was reported."""
    known = [point for point in points if point.loss is not None]
    if not known:
        return None
    losses = [point.loss for point in known]
    x, y = _steps(known), Scale.over([loss for loss in losses if loss is not None])
    shape = Shape(line([point.step for point in known], losses, x, y), "loss", False, "loss")
    first, last = known[0], known[-1]
    summary = f"Loss {units.number(first.loss)} at step {first.step:,}, {units.number(last.loss)} at step {last.step:,}"
    readings = [(x.share(point.step), [_step_text(point), f"loss {units.number(point.loss)}"]) for point in known]
    return _chart("Loss", "mean over ranks", summary, [shape], x, y, readings)


def time_chart(points: Sequence[Point]) -> Chart | None:
    """Seconds of a step, split into computing, waiting and the rest; None before the second report."""
    timed = [point for point in points if point.steps and point.seconds > 0]
    if len(timed) < 2:
        return None
    measured = any(point.compute_s for point in timed)
    parts = [
        ("compute", "computing", [point.compute_s / point.steps for point in timed]),
        ("wait", "waiting", [point.wait_s / point.steps for point in timed]),
        ("rest", "rest" if measured else "computing and the rest", [point.rest_s / point.steps for point in timed]),
    ][0 if measured else 1 :]  # without attached models, computing is part of the rest
    xs = [point.step for point in timed]
    edges = stacked([values for _, _, values in parts])
    top = edges[-1][1]
    end = high_end(top)
    x, y = _steps(timed), _cut_scale(end)
    shapes = [
        Shape(band(xs, [min(v, y.high) for v in lower], [min(v, y.high) for v in upper], x, y), colour, True, name)
        for (colour, name, _), (lower, upper) in zip(parts, edges, strict=True)
    ]
    mean = sum(point.seconds for point in timed) / sum(point.steps for point in timed)
    waiting = sum(point.wait_s for point in timed) / sum(point.seconds for point in timed)
    readings = [
        (
            x.share(point.step),
            [_step_text(point), f"{units.seconds(point.seconds / point.steps)} a step"]
            + [f"{name} {units.seconds(values[index])}" for _, name, values in parts],
        )
        for index, point in enumerate(timed)
    ]
    summary = f"A step took {units.seconds(mean)} on average, {units.percent(waiting)} of it waiting for communication"
    cut = f"Some steps took longer than shown: up to {units.seconds(max(top))}." if max(top) > y.high else None
    return _chart("Step time", "seconds a step, mean over ranks", summary, shapes, x, y, readings, cut)


def speed_chart(points: Sequence[Point]) -> Chart | None:
    """Tokens per second; None if the script counts none."""
    timed = [point for point in points if point.steps and point.seconds > 0]
    if len(timed) < 2 or not any(point.tokens for point in timed):
        return None
    speeds = [point.tokens / point.seconds for point in timed]
    x, y = _steps(timed), _cut_scale(high_end(speeds))
    curve = line([point.step for point in timed], [min(speed, y.high) for speed in speeds], x, y)
    mean = sum(point.tokens for point in timed) / sum(point.seconds for point in timed)
    readings = [
        (x.share(point.step), [_step_text(point), f"{units.number(speed)} tokens/s"])
        for point, speed in zip(timed, speeds, strict=True)
    ]
    summary = f"{units.number(mean)} on average, {units.number(min(speeds))} to {units.number(max(speeds))}"
    return _chart(
        "Speed", "tokens per second, all ranks", summary, [Shape(curve, "speed", False, "tokens/s")], x, y, readings
    )


def _chart(
    title: str,
    unit: str,
    summary: str,
    shapes: list[Shape],
    x: Scale,
    y: Scale,
    readings: list[tuple[float, list[str]]],
    cut: str | None = None,
) -> Chart:
    return Chart(
        title=title,
        unit=unit,
        summary=summary,
        shapes=tuple(shapes),
        x_ticks=tuple(Tick(100 * x.share(value), units.tick(value)) for value in x.ticks(5) if value == int(value)),
        y_ticks=tuple(Tick(100 - 100 * y.share(value), units.tick(value)) for value in y.ticks(5)),
        readings=json.dumps([[round(100 * at, 2), *texts] for at, texts in readings]),
        cut=cut,
    )


def _steps(points: Sequence[Point]) -> Scale:
    return Scale.exactly([point.step for point in points])


def _cut_scale(end: float) -> Scale:
    """From 0 to a round number at or above `end`."""
    return Scale.over([0.0, end], from_zero=True)


def _step_text(point: Point) -> str:
    first = point.step - point.steps + 1
    return f"step {point.step:,}" if point.steps <= 1 else f"steps {first:,} to {point.step:,}"
