"""Who makes a group wait: as decisions on given reports, and with a rank that really comes late."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import collectives
from collectives.engine import lifetime
from collectives.engine.monitor.stragglers import LOOK_OPS, MIN_OPS, StragglerDetector
from collectives.planning.planner import plan
from collectives.schedule.op import OpSpec
from collectives.topology import Host, Topology
from tests.collectives.engine.group import engines, on_all

SPEC = OpSpec("all_reduce", "float32", "sum", None, (6_250_000,))
EQUAL = Topology(tuple(Host(name, (rank,), 1.2e8, 1.2e8) for rank, name in enumerate("abcd")))
ONE_SLOW = Topology((*EQUAL.hosts[:3], Host("d", (3,), 1.2e7, 1.2e7)))


def after_one_op(topology: Topology, reports: list[tuple[float, float]]) -> str | None:
    mine = StragglerDetector(0, [f"rank {rank}" for rank in range(4)])
    mine.is_due(SPEC, plan(topology, "all_reduce", SPEC.num_bytes), 0.0)
    return mine.consider(np.array(reports), topology)


def test_a_rank_that_sleeps_less_than_the_others_is_late() -> None:
    said = after_one_op(EQUAL, [(10.0, 6.0), (10.0, 6.5), (10.0, 1.0), (10.0, 5.5)])
    assert said == "rank 2 is a straggler: the others waited for it 50% of the last 10.0 s"


@pytest.mark.parametrize("topology", [EQUAL, ONE_SLOW])
def test_what_costs_less_than_a_fifth_is_not_named(topology: Topology) -> None:
    assert after_one_op(topology, [(60.0, 2.0), (60.0, 2.0), (60.0, 1.0), (60.0, 2.0)]) is None


def test_equal_links_are_nobodys_fault() -> None:
    assert after_one_op(EQUAL, [(0.6, 0.5)] * 4) is None


def test_a_slow_link_is_named_with_what_it_costs() -> None:
    said = after_one_op(ONE_SLOW, [(2.2, 2.0)] * 4)
    assert said is not None
    assert said.startswith("the link up of d, 96 Mbit/s, costs 8")
    assert "all_reduce of 25 MB would take 3" in said


def test_rank_0_says_it_once_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    first, second = StragglerDetector(0, ["rank 0", "rank 1"]), StragglerDetector(1, ["rank 0", "rank 1"])
    two = Topology.from_hosts("ab")
    late, well = np.array([(1.0, 0.9), (1.0, 0.0)]), np.array([(1.0, 0.1), (1.0, 0.1)])
    with caplog.at_level(logging.WARNING):
        for reports in (late, late, well, well):
            first.consider(reports, two)
            second.consider(reports, two)
    assert [record.message for record in caplog.records] == [
        "rank 1 is a straggler: the others waited for it 90% of the last 1.0 s",
        "rank 1 no longer costs a fifth of the time",
    ]


def test_ranks_tell_each_other_after_so_many_ops_or_seconds() -> None:
    short, small = StragglerDetector(0, ["rank 0"]), OpSpec("all_reduce", "float32", "sum", None, (1,))
    due = [short.is_due(small, plan(EQUAL, "all_reduce", 4), 0.0) for _ in range(LOOK_OPS)]
    assert due.index(True) == LOOK_OPS - 1
    long, in_force = StragglerDetector(0, ["rank 0"]), plan(ONE_SLOW, "all_reduce", SPEC.num_bytes)
    assert [long.is_due(SPEC, in_force, 0.0) for _ in range(MIN_OPS)].index(True) == MIN_OPS - 1


def test_the_ranks_reports_reach_rank_0_and_the_waits_the_groups_name(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given readings: rank 1 never waited. That rank 0 slept because of it is real, since rank 1 comes late."""
    waited = (0.9, 0.0, 0.8)
    monkeypatch.setattr(StragglerDetector, "is_due", lambda *_: True)
    monkeypatch.setattr(StragglerDetector, "report", lambda self: np.array([1.0, waited[self._rank]]))
    spec = OpSpec("all_reduce", "float32", "sum", None, (1000,))
    first_comes = threading.Event()
    with engines("abc") as group, caplog.at_level(logging.WARNING):

        def train(rank: int) -> None:
            values = np.ones(1000, np.float32)
            if rank == 0:
                first_comes.set()
            if rank == 1:
                assert first_comes.wait(60)
                time.sleep(1.0)
            group[rank].run(spec, values.ctypes.data, values.ctypes.data)

        on_all(3, train)
        waits = [engine.waits() for engine in group]
        of_this_process = (lifetime.waits(), collectives.stats()["waited_for"])
    assert [record.message for record in caplog.records] == [
        "rank 1 (b) is a straggler: the others waited for it 85% of the last 1.0 s"
    ]
    assert waits[0]["rank 1 (b)"] > 0.02
    for by_group in of_this_process:
        assert by_group["test"] in waits
    assert "test" not in lifetime.waits(), "a group that was closed is nobody's"


@pytest.mark.measured
def test_a_rank_that_comes_late_is_named_and_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    spec = OpSpec("all_reduce", "float32", "sum", None, (1000,))
    with engines("abc") as group, caplog.at_level(logging.WARNING):

        def train(rank: int) -> None:
            values = np.ones(1000, np.float32)
            for _ in range(LOOK_OPS):
                time.sleep(0.004 if rank == 1 else 0.0)
                group[rank].run(spec, values.ctypes.data, values.ctypes.data)

        on_all(3, train)
        waits = [engine.waits() for engine in group]
        assert "test" in lifetime.waits()
    assert any(record.message.startswith("rank 1 (b) is a straggler: ") for record in caplog.records)
    assert waits[0]["rank 1 (b)"] > 0.5
    assert waits[0]["rank 1 (b)"] > waits[0].get("rank 2 (c)", 0.0)


def test_a_trace_has_ops_slices_and_waits(tmp_path: Path) -> None:
    spec = OpSpec("all_reduce", "float32", "sum", None, (100_000,))
    with engines("ab", trace=str(tmp_path / "traces")) as group:

        def run(rank: int) -> None:
            values = np.ones(100_000, np.float32)
            for _ in range(2):
                time.sleep(0.3 * rank)
                group[rank].run(spec, values.ctypes.data, values.ctypes.data)

        on_all(2, run)
    events = json.loads((tmp_path / "traces" / "trace-test-rank-0.json").read_text())["traceEvents"]
    ops = [event for event in events if event["ph"] == "X" and event["tid"] == 0]
    assert [op["name"] for op in ops] == ["all_reduce sum of 100000 float32"] * 2
    assert all(op["args"]["bytes"] == 400_000 and op["args"]["waited_ms"]["rank 1 (b)"] > 20 for op in ops)
    waits = [event for event in events if event["ph"] == "X" and event["tid"] == 1]
    assert any(wait["name"] == "for rank 1 (b)" and wait["dur"] > 20_000 for wait in waits)
    slices = {event["name"] for event in events if event["ph"] == "i"}
    assert {name.split(" slice ")[0] for name in slices} == {"tree 0", "tree 1"}
    assert {name.split(" ")[4] for name in slices} == {"up", "down"}
    assert all(0 <= event["ts"] / 1e6 - time.time() + 600 <= 600 for event in ops)


def test_a_trace_tells_of_the_callers_ops_alone(tmp_path: Path) -> None:
    """The gather by which ranks tell each other how long they slept comes after every LOOK_OPS ops."""
    spec = OpSpec("all_reduce", "float32", "sum", None, (1,))
    with engines("ab", trace=str(tmp_path)) as group:

        def run(rank: int) -> None:
            value = np.ones(1, np.float32)
            for _ in range(LOOK_OPS + 1):
                group[rank].run(spec, value.ctypes.data, value.ctypes.data)

        on_all(2, run)
        assert group[0].counters.ops == LOOK_OPS + 1
    events = json.loads((tmp_path / "trace-test-rank-0.json").read_text())["traceEvents"]
    ops = [event for event in events if event["ph"] == "X" and event["tid"] == 0]
    assert len(ops) == LOOK_OPS + 1
    inside = [e for e in events if e["ph"] == "i" and any(o["ts"] <= e["ts"] <= o["ts"] + o["dur"] for o in ops)]
    assert len(inside) == len([event for event in events if event["ph"] == "i"]) > 0


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING), engines("ab", trace=str(tmp_path / "file")):
        pass
    assert "the trace cannot be written: " in caplog.text
