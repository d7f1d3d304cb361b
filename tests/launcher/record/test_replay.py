"""A run out of its folder: how many ranks it has, and what is known after it was started again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from launcher.config.job import Job
from launcher.record.events import Event, Exited, Reported, Retried, Started, to_json
from launcher.record.replay import Reader
from launcher.record.run_dir import RunDir
from launcher.record.seats import Node, RankPlacement

SCRIPT = {"entrypoint": "train.py", "workers": {"max": 4}, "cluster": {"address": "auto"}}


def made(folder: Path) -> RunDir:
    """The folder of a run that asked for up to four workers."""
    return RunDir.create(Job.model_validate({"name": "demo", "runs_dir": str(folder), **SCRIPT}))


def plan(run: RunDir, ranks: int) -> None:
    seats = [
        RankPlacement(rank, 0, 1, rank, ranks, "abcd"[rank], False, Node("n", "n", "10.0.0.1", 1))
        for rank in range(ranks)
    ]
    run.write_plan({"seats": [asdict(seat) for seat in seats], "collectives": None})


def write(run: RunDir, *events: Event) -> None:
    with run.events.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(to_json(event)) + "\n" for event in events)


def states(reader: Reader) -> list[str]:
    return [worker.state for worker in reader.replay.state.workers]


def test_there_are_as_many_ranks_as_the_plan_has_seats(tmp_path: Path) -> None:
    run = made(tmp_path)
    reader = Reader(run.path)
    assert reader.replay.world_size == 4  # before there is a plan
    plan(run, 2)
    write(run, Started(0, 1.0, 10, "x", None), Started(1, 1.0, 11, "x", None), Reported(0, 2.0, step=1))
    reader.new_lines()
    assert states(reader) == ["running", "running"]
    write(run, Reported(1, 2.0, step=1, loss=3.0))
    assert [line.step for line in reader.new_lines()] == [1]
    assert len(Reader(run.path).replay.paces()) == 2


def test_workers_that_are_started_again_begin_anew(tmp_path: Path) -> None:
    run = made(tmp_path)
    plan(run, 1)
    write(run, Started(0, 1.0, 10, "x", None), Reported(0, 2.0, step=7), Exited(0, 3.0, -9))
    reader = Reader(run.path)
    assert [line.step for line in reader.new_lines()] == [7]
    assert states(reader) == ["failed"]
    write(run, Retried(0, 4.0, 2, "rank 0: killed"), Started(0, 5.0, 12, "x", None))
    reader.new_lines()
    assert states(reader) == ["running"]
    assert reader.replay.tally.last is None
    write(run, Reported(0, 6.0, step=5))  # from a checkpoint before step 7
    assert [line.step for line in reader.new_lines()] == [5]
