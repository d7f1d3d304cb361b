"""`report.html`: one self-contained page about one run, made from what is in its folder at any time.

record.read, record.events     files -> plain values
story.tell                     events -> points, totals of each rank, moments
charts, network, diagram, ranks      plain values -> what is to be drawn
page.render                    all of it -> HTML
"""

from __future__ import annotations

import os
from pathlib import Path

from launcher.record.run_dir import RunDir
from launcher.report import record
from launcher.report.page import render
from launcher.report.story import tell


def write(folder: Path) -> Path:
    """Make or renew the page of the run in `folder`; gives its path.

    Raises:
        ReportError: it is not the folder of a run, or something else has changed its files.
        OSError: the page can't be written.
    """
    found = record.read(folder)
    story = tell(record.events(folder), world_size(found))
    path = RunDir.of(folder).report
    scratch = path.with_suffix(".tmp")
    scratch.write_text(render(found, story), encoding="utf-8")
    os.replace(scratch, path)
    return path


def grafana() -> str:
    """A Grafana dashboard, as JSON to import there, over the metrics of docs/reference/metrics.md."""
    return Path(__file__).with_name("grafana.json").read_text(encoding="utf-8")


def world_size(found: record.RunRecord) -> int:
    """How many ranks the run has or should have had; 0 if it failed before that was known."""
    if found.summary is not None and isinstance(found.summary.get("world_size"), int):
        return int(found.summary["world_size"])
    return len((found.plan or {}).get("seats") or ())
