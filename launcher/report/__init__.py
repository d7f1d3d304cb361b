"""`report.html`: one self-contained page about one run, from the files in its folder, during the run or after it.

    record.read, record.events           files -> plain values
    story.build                          events -> points of the curves, totals of each rank, moments
    charts, network, diagram, ranks      plain values -> shapes, rows and texts
    page.render                          all of these -> HTML

Only `record` reads files, and only the template writes HTML. It escapes every value: names, logs and messages of errors
come from scripts and may hold markup.
"""

from __future__ import annotations

import os
from pathlib import Path

from launcher.record.run_dir import RunDir
from launcher.report import record
from launcher.report.page import render
from launcher.report.story import build


def write(folder: Path) -> Path:
    """Write the page of the run in `folder`, or renew it, and return its path.

    Raises:
        ReportError: it is not the folder of a run, or its files are not as the launcher writes them.
        OSError: the page cannot be written.
    """
    found = record.read(folder)
    story = build(record.events(folder), world_size(found))
    path = RunDir.of(folder).report
    # Written aside and renamed, since a browser may be reading the old page.
    scratch = path.with_suffix(".tmp")
    scratch.write_text(render(found, story), encoding="utf-8")
    os.replace(scratch, path)
    return path


def grafana() -> str:
    """A Grafana dashboard over the launcher's metrics, as JSON to import."""
    return Path(__file__).with_name("grafana.json").read_text(encoding="utf-8")


def world_size(found: record.RunRecord) -> int:
    """Number of ranks of the run; 0 if it failed before they were placed."""
    if found.summary is not None and isinstance(found.summary.get("world_size"), int):
        return int(found.summary["world_size"])
    return len((found.plan or {}).get("seats") or ())
