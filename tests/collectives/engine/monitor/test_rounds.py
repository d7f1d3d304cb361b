"""Rounds of reports: after which ops they are held, and that one exchange carries all that is due."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from collectives.engine.monitor.link_monitor import LinkMonitor
from collectives.engine.monitor.rounds import MonitorRounds
from collectives.engine.monitor.stragglers import LOOK_OPS, StragglerDetector
from collectives.planning.planner import plan
from collectives.schedule.op import OpSpec
from collectives.topology import Host, Topology
from tests.collectives.engine.group import engines, on_all

SLOW = Topology(tuple(Host(name, (rank,), 1e6, 1e6) for rank, name in enumerate("ab")))
ALL_REDUCE = OpSpec("all_reduce", "float32", "sum", None, (1_000_000,))
BROADCAST = OpSpec("broadcast", "float32", None, 0, (1,))


def test_all_reports_that_are_due_travel_in_one_exchange() -> None:
    exchanges: list[int] = []

    def all_gather(spec: OpSpec, source: int, target: int) -> None:
        exchanges.append(spec.counts[0])
        for rank in range(2):
            as_bytes: Any = np.ctypeslib.as_array
            kind = np.ctypeslib.ctypes.c_uint8 * spec.counts[0]
            as_bytes(kind.from_address(target + rank * spec.counts[0]))[:] = as_bytes(kind.from_address(source))

    rounds = MonitorRounds(2, StragglerDetector(0, ["rank 0", "rank 1"]), LinkMonitor(0, SLOW, []), all_gather)
    in_force = plan(SLOW, "all_reduce", ALL_REDUCE.num_bytes)
    for _ in range(8):
        rounds.after(ALL_REDUCE, in_force, 4.0, 3.0, SLOW)
    of_links, of_both = (1 + 2 * 2) * 8, (2 + 1 + 2 * 2) * 8
    assert exchanges == [of_links] * 7 + [of_both], "a straggler is looked for after eight ops at the earliest"


def test_the_root_of_broadcasts_is_never_held_up_by_a_round() -> None:
    root_is_done = threading.Event()
    with engines("ab") as group:

        def broadcast(rank: int) -> None:
            if rank == 1:
                assert root_is_done.wait(60), "the root waited for a rank that has not begun"
            value = np.full(1, 7.0 - rank, np.float32)
            for _ in range(LOOK_OPS + 10):
                group[rank].run(BROADCAST, value.ctypes.data, value.ctypes.data)
                assert value[0] == 7.0
            root_is_done.set()

        on_all(2, broadcast)
