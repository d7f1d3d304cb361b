"""A report as a picture: algorithm bandwidth and time over size, on log axes, for ours, Gloo, the plan and the limit.

Needs matplotlib, which the extra `plot` installs.
"""

from __future__ import annotations

import html
import importlib.util
import io
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from collectives.bench.report import BenchRow, Report
from collectives.errors import UsageError

SUFFIXES = (".png", ".svg", ".html")
PANEL_INCHES = (5.6, 3.9)

# Label, style and seconds of each line.
LINES: tuple[tuple[str, dict[str, Any], Callable[[BenchRow], float | None]], ...] = (
    ("limit", {"color": "0.35", "linestyle": "--"}, lambda row: row.limit_s),
    ("our plan", {"color": "tab:blue", "linestyle": ":"}, lambda row: row.predicted_s),
    ("narrowgauge", {"color": "tab:blue", "marker": "o"}, lambda row: row.time_s),
    ("Gloo", {"color": "tab:orange", "marker": "s"}, lambda row: row.gloo_time_s),
)


def check(path: Path) -> None:
    """Check that a picture can be drawn to this path.

    Raises:
        UsageError: another suffix than .png, .svg or .html, or matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--plot {path}: wanted a name that ends in {', '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed: pip install 'narrowgauge[plot]'")


def draw(report: Report, path: Path) -> None:
    """Write the picture; an .html file has the table below it. The report must have rows.

    Raises:
        UsageError: see `check`.
    """
    check(path)
    if path.suffix == ".html":
        path.write_text(_page(report), encoding="utf-8")
    else:
        _figure(report).savefig(path, dpi=130)


def _figure(report: Report) -> Any:
    from matplotlib.figure import Figure

    by_name = [(name, list(rows)) for name, rows in groupby(report.rows, key=lambda row: row.collective)]
    width, height = PANEL_INCHES
    figure = Figure(figsize=(2 * width, height * len(by_name) + 0.6), layout="constrained")
    hosts = len(set(report.hosts))
    figure.suptitle(f"{report.dtype}, {len(report.hosts)} ranks on {hosts} host{'s' if hosts > 1 else ''}")
    panels = figure.subplots(len(by_name), 2, squeeze=False)
    for (left, right), (name, rows) in zip(panels, by_name, strict=True):
        rows = sorted(rows, key=lambda row: row.num_bytes)
        for label, style, seconds in LINES:
            known = [(row.num_bytes, taken) for row in rows if (taken := seconds(row)) is not None]
            if known:
                left.plot([size for size, _ in known], [8e-6 * size / s for size, s in known], label=label, **style)
                right.plot([size for size, _ in known], [1e3 * s for _, s in known], label=label, **style)
        for panel, quantity in ((left, "algorithm bandwidth, Mbit/s"), (right, "time, ms")):
            panel.set(xscale="log", yscale="log", xlabel="message, bytes", ylabel=quantity, title=name)
            panel.grid(which="major", alpha=0.3)
            panel.legend()
            _around_measured(panel, rows, report, is_time=panel is right)
    return figure


def _around_measured(panel: Any, rows: list[BenchRow], report: Report, *, is_time: bool) -> None:
    """Set the axis by the measured values: the limit of tiny messages is orders of magnitude away."""
    measured = [taken for row in rows for taken in (row.time_s, row.gloo_time_s) if taken is not None]
    if is_time:
        panel.set_ylim(bottom=1e3 * min(measured) / 5)
        return
    pairs = [(row.num_bytes, taken) for row in rows for taken in (row.time_s, row.gloo_time_s) if taken is not None]
    panel.set_ylim(top=5 * max(8e-6 * size / taken for size, taken in pairs))


def _page(report: Report) -> str:
    picture = io.StringIO()
    _figure(report).savefig(picture, format="svg")
    svg = picture.getvalue()
    svg = svg[svg.index("<svg") :]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>narrowgauge bench</title>\n'
        "<style>body { font-family: sans-serif; margin: 2em } svg { max-width: 100%; height: auto }</style>\n"
        f"<h1>narrowgauge bench</h1>\n<p>{html.escape(versions)}</p>\n{svg}\n"
        f"<pre>{html.escape(report.table())}</pre>\n</html>\n"
    )
