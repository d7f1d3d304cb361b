"""From a driver's run folder through its output to a copy of the folder."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from launcher.config.job import Job
from launcher.record.events import Event, Exited, Reported, Started, from_json, to_json
from launcher.record.run_dir import RunDir
from launcher.remote.feed import FedRunDir, Feed, FeedView, Mirror, Thinner


def report(rank: int, step: int, tokens: int = 10) -> Reported:
    return Reported(rank, float(step), step, tokens=tokens, wait_s=0.5, waits={f"rank {1 - rank}": 0.25})


def passed(thinner: Thinner, steps: int, ranks: int, step_s: float, lag: int = 0) -> list[Reported]:
    """What passes of `steps` steps, of which the last rank is `lag` behind."""
    events: list[Event] = []
    for step in range(1, steps + 1):
        for rank in range(ranks):
            own = step - lag if rank == ranks - 1 else step
            events += thinner.on(report(rank, own), step * step_s) if own > 0 else []
    return [event for event in events if isinstance(event, Reported)]


def test_slow_reports_all_pass() -> None:
    assert [(event.rank, event.step) for event in passed(Thinner(0.0), 3, 2, 1.5)] == [
        (rank, step) for step in (1, 2, 3) for rank in (0, 1)
    ]


def test_fast_reports_pass_once_a_second_for_the_same_steps_with_their_sums() -> None:
    thinner = Thinner(0.0)
    found = passed(thinner, 1000, 2, 0.01)
    steps = [[event.step for event in found if event.rank == rank] for rank in (0, 1)]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 10
    held = [event for event in thinner.rest() if isinstance(event, Reported)]
    assert [sum(event.tokens for event in found + held if event.rank == rank) for rank in (0, 1)] == [10_000, 10_000]
    assert sum(event.waits["rank 1"] for event in found + held if event.rank == 0) == 250
    assert sum(event.wait_s for event in found + held) == 1000


def test_a_run_of_a_day_has_one_in_ten_seconds() -> None:
    found = passed(Thinner(-86_400.0), 1000, 1, 0.1)
    assert len(found) in (10, 11)


def test_a_rank_that_lags_behind_passes_too() -> None:
    found = passed(Thinner(0.0), 1000, 3, 0.1, lag=50)
    assert len([event for event in found if event.rank == 2]) > 40


def test_what_is_held_passes_before_the_end_of_its_rank() -> None:
    thinner = Thinner(0.0)
    for step in (1, 2, 3):
        thinner.on(report(0, step), 0.1)
    last = thinner.on(Exited(0, 1.0, 0), 1.0)
    assert [(type(event).__name__, getattr(event, "step", None)) for event in last] == [
        ("Reported", 3),
        ("Exited", None),
    ]
    assert thinner.rest() == []


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_folder_arrives_as_it_is(tmp_path: Path, size: int) -> None:
    job = Job(name="demo", entrypoint="train.py", workers={"count": 2}, runs_dir=str(tmp_path / "runs"))
    out = io.StringIO()
    feed = Feed(out)
    run = FedRunDir.fed(RunDir.create(job), feed)
    view = FeedView(run, feed, out)
    view.stage("loading the engine")
    run.write_plan({"seats": [], "collectives": None})
    run.append(Started(1, 1.0, 42, "x.log", "eth0"))
    view.log(1, "Grüße")
    run.log(1).write_text("Grüße\n")
    out.write("WARNING: something of Ray's\n")
    run.append(report(1, 1))
    run.write_summary({"status": "finished"})
    mirror = Mirror(tmp_path / "copy")
    text = out.getvalue()
    for start in range(0, len(text), size):
        mirror.write(text[start : start + size])
    assert list(mirror.other_lines) == ["WARNING: something of Ray's"]
    for file in ("launcher.log", "plan.json", "events.jsonl", "summary.json", "logs/rank-1.log"):
        assert (mirror.folder / file).read_text() == (run.path / file).read_text(), file
    events = [from_json(json.loads(line)) for line in (mirror.folder / "events.jsonl").read_text().splitlines()]
    assert [to_json(event)["event"] for event in events] == ["Started", "Reported"]


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        '{"file": ',
        '{"file": 3, "add": "x"}',
        '{"file": "../x", "add": "x"}',
        '{"file": "/tmp/x", "add": "x"}',
        '{"file": "x", "add": 3}',
        '{"file": "x", "put": "x"}',
        '{"rank": 3}',
        "[]",
    ],
)
def test_other_lines_are_kept_aside_and_write_nothing(tmp_path: Path, line: str) -> None:
    mirror = Mirror(tmp_path / "a" / "copy")
    mirror.write(line + "\n")
    assert list(mirror.other_lines) == [line]
    assert list(tmp_path.iterdir()) == []
