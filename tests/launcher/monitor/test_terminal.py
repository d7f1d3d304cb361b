"""What a person sees."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from collectives import PeerLost
from launcher import progress
from launcher.config.job import Workers
from launcher.monitor.terminal import (
    LiveView,
    PlainView,
    format_duration,
    format_line,
    format_placement,
    open_view,
    print_summary,
)
from launcher.planning.placement import place
from launcher.record.events import Exited, Reported, Started
from launcher.record.seats import Node
from launcher.record.tally import Line, Tally
from launcher.run.supervisor import Supervisor
from tests.paths import REPOSITORY

BOX = Node("a", "box", "127.0.0.1", 8)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (Line(1, 0.0, 300, 5.54321), "step 1/300  loss 5.5432"),
        (
            Line(20, 0.0, 300, 2.5, tokens_per_s=12345.6, step_s=0.1234, wait_share=0.183, left_s=125.0),
            "step 20/300  loss 2.5000  12,346 tokens/s  123 ms/step  waiting 18%  2 min 05 s left",
        ),
        (Line(7, 0.0, None, None, step_s=2.0, wait_share=0.0), "step 7  2000 ms/step  waiting 0%"),
    ],
)
def test_a_line_of_progress(line: Line, text: str) -> None:
    assert format_line(line) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.2, "3 s"), (59.9, "60 s"), (61, "1 min 01 s"), (3599, "59 min 59 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_seating() -> None:
    assert format_placement(place([BOX], Workers(count=3, hosts=2), emulate_hosts=True)) == [
        "host-0 (emulated) on box (127.0.0.1): ranks 0, 1",
        "host-1 (emulated) on box (127.0.0.1): rank 2",
    ]
    assert format_placement(place([BOX], Workers(count=2), emulate_hosts=True)) == ["box (127.0.0.1): ranks 0, 1"]


def test_a_pipe_gets_plain_lines() -> None:
    out = io.StringIO()
    view = open_view(out)
    assert type(view) is PlainView
    view.stage("starting")
    view.lines([Line(1, 0.0, None, 2.0)])
    view.print("[rank 0] hello")
    assert out.getvalue() == "starting\nstep 1  loss 2.0000\n[rank 0] hello\n"


def test_a_pipe_gets_the_first_and_the_last_line_and_at_most_one_a_second() -> None:
    out, now = io.StringIO(), [10.0]
    view = PlainView(out, lambda: now[0])
    for step in range(1, 31):
        view.lines([Line(step, 0.0, None, None)])
        now[0] += 0.125
    view.close()
    view.close()
    assert [int(line.split()[1]) for line in out.getvalue().splitlines()] == [1, 9, 17, 25, 30]


def test_a_line_that_was_held_back_is_shown_when_nothing_follows() -> None:
    out, now = io.StringIO(), [10.0]
    view = PlainView(out, lambda: now[0])
    view.lines([Line(1, 0.0, None, None), Line(2, 0.0, None, None)])
    now[0] += 1.5
    view.refresh(Supervisor(1, 0.0), Tally(1))
    assert out.getvalue() == "step 1\nstep 2\n"


def test_a_terminal_gets_a_table_of_the_ranks() -> None:
    out = io.StringIO()
    view = LiveView(out)
    view.seats(place([BOX], Workers(count=2, hosts=2), emulate_hosts=True))
    supervisor, tally = Supervisor(2, 0.0), Tally(2)
    for event in (
        Started(0, 1.0, 100, "rank-0.log"),
        Started(1, 1.0, 101, "rank-1.log"),
        Reported(0, 2.0, step=5, of=10, loss=2.0),
        Reported(1, 2.0, step=5, of=10, loss=3.0),
        Exited(1, 3.0, -9),
    ):
        supervisor.on(event, event.at)
        tally.on(event)
    view.refresh(supervisor, tally)
    view.close()
    shown = out.getvalue()
    for words in ("step 5/10  loss 2.5000", "50%", "host-0  running", "host-1  failed", "3.0000"):
        assert words in shown


def test_the_cause_of_a_failure_and_its_log_come_last(tmp_path: Path) -> None:
    log = tmp_path / "rank-1.log"
    log.write_text(
        "step 1\nTraceback (most recent call last):\n  File 'train.py'\nValueError: boom\n\nAt:\n  torch.py(3): wait\n"
    )
    summary: dict[str, Any] = {
        **dict.fromkeys(("first_loss", "heldout_loss", "step_s", "tokens_per_s", "seconds_to_first_step")),
        **{"name": "demo", "status": "failed", "wall_s": 12.0, "notes": {}, "folder": str(tmp_path)},
        "failure": {
            "rank": 1,
            "host": "host-0",
            "what": "ValueError: boom",
            "log": str(log),
            "others": [{"rank": 0, "host": "host-0", "what": "PeerLost: rank 1 died; see x.log. Then", "log": ""}],
        },
    }
    out = io.StringIO()
    print_summary(summary, out)
    lines = out.getvalue().rstrip().splitlines()
    assert "demo failed after 12 s" in lines
    assert "  then       rank 0 (host-0): PeerLost: rank 1 died" in lines
    assert lines[-6:] == [
        "    Traceback (most recent call last):",
        "      File 'train.py'",
        "    ValueError: boom",
        "",
        "rank 1 on host-0: ValueError: boom",
        f"its log: {log}",
    ]


def chained() -> BaseException:
    try:
        raise PeerLost("rank 0 (a), all_reduce (op 3): rank 1 (b) died", culprit=1)
    except PeerLost as lost:
        error = RuntimeError("training failed")
        error.__cause__ = lost
        return error


_QUOTE = "rank 0 (a), all_reduce (op 3): rank 2 (c) gave up: rank 2 (c), all_reduce (op 3): rank 1 (b) died; see b.log"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("boom"), ("ValueError", "boom", None)),
        (PeerLost("rank 1 died", culprit=1), ("PeerLost", "rank 1 died", 1)),
        (chained(), ("RuntimeError", "training failed", 1)),
        (
            RuntimeError(
                f"Got the following error when running the callback: PeerLost: {_QUOTE}\n\nAt:\n  ddp.py(3): wait\n"
            ),
            ("PeerLost", _QUOTE, 1),
        ),
        (RuntimeError("OpTimeout: nothing moved"), ("OpTimeout", "nothing moved", None)),
        (RuntimeError("shapes differ"), ("RuntimeError", "shapes differ", None)),
    ],
)
def test_an_exception_is_described(error: BaseException, expected: tuple[str, str, int | None]) -> None:
    assert progress.describe_exception(error) == expected


@pytest.mark.parametrize(("rank", "shown"), [("0", True), ("1", False)])
def test_without_a_launcher_rank_0_prints_its_progress(tmp_path: Path, rank: str, shown: bool) -> None:
    program = (
        "from launcher import progress\n"
        "progress.report(1, of=3, loss=2.5, tokens=10)\nprogress.report(2, of=3, loss=1.5, tokens=10, lr=0.1)\n"
        "progress.note(answer=42)\nprint(progress.checkpoint_dir())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "RANK": rank, "WORLD_SIZE": "2", "PYTHONPATH": str(REPOSITORY)},
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "checkpoints"
    assert (tmp_path / "checkpoints").is_dir()
    if shown:
        assert lines[0] == "step 1/3  loss 2.5000"
        assert lines[1].startswith("step 2/3  loss 1.5000  ")
        assert lines[1].endswith("lr 0.1")
        assert lines[2] == "answer: 42"
    else:
        assert len(lines) == 1
