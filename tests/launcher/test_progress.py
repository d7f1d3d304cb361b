"""What reports say about waiting, from the counters of several process groups."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

import collectives
from launcher import progress

COUNTERS = {"wait_s": 0.0, "bytes": 0, "samples": 0.0, "compute_s": 0.0, "hangs": {}}
HERE, THERE = "rank 0 (a)", "rank 1 (b)"


def test_waits_are_the_increase_in_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups number their ranks for themselves, and the one that waits most is another from report to report."""
    groups: list[dict[str, dict[str, float]]] = [
        {"0": {HERE: 10.0, THERE: 1.0}},
        {"0": {HERE: 10.5, THERE: 1.0}, "pair": {HERE: 0.25, THERE: 12.0}},  # now this one has waited more in all
        {"0": {HERE: 14.5, THERE: 1.0}, "pair": {HERE: 0.25, THERE: 12.0}},
        {"0": {HERE: 0.5, THERE: 0.25}},  # after `destroy_process_group`: others of the same name
        {},
    ]
    taken = iter(groups)
    monkeypatch.setattr(collectives, "stats", lambda: {**COUNTERS, "waited_for": next(taken)})
    monkeypatch.setenv("RANK", "1")
    read, write = os.pipe()
    reporter = progress._ToLauncher(write)
    for step in range(len(groups)):
        reporter.report(step + 1, None, None, 0, {})
    with os.fdopen(read) as lines:
        found: list[dict[str, Any]] = [json.loads(lines.readline()) for _ in groups]
    assert [each["waits"] for each in found] == [
        {HERE: 10.0, THERE: 1.0},
        {HERE: 0.25, THERE: 12.0},
        {HERE: 4.0},
        {HERE: 0.5, THERE: 0.25},
        {},
    ]
