"""Rounds in which all ranks exchange what each has measured, between two ops.

Whether a round is due must not depend on a rank's own clock: the all-gather that carries the reports is an op like any
other, and all ranks must run it at the same place. So it follows from the ops and their predicted seconds alone, which
are equal on all ranks.

A round makes ranks wait for each other, so it is held only after an op in which they did so anyway. The root of a
broadcast may run ahead of the others, and would be held up by a round that they are far from. All reports that are due
travel in one all-gather.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from collectives.engine.monitor.link_monitor import LinkMonitor
from collectives.engine.monitor.stragglers import StragglerDetector
from collectives.planning.plan import Plan
from collectives.schedule.op import OpSpec
from collectives.topology import Topology

Report = npt.NDArray[np.float64]
RunOp = Callable[[OpSpec, int, int], object]


class MonitorRounds:
    """The rounds of one group.

    Args:
        stragglers: None in a group of one.
        link_monitor: None where the links' rates are an assumption, or there are none.
        run_op: runs an op of the monitors' own on addresses of source and target.
    """

    def __init__(
        self, size: int, stragglers: StragglerDetector | None, link_monitor: LinkMonitor | None, run_op: RunOp
    ) -> None:
        self._size, self._stragglers, self._link_monitor, self._run_op = size, stragglers, link_monitor, run_op

    def after(self, spec: OpSpec, in_force: Plan, seconds: float, poll_s: float, topology: Topology) -> Topology | None:
        """Note an op that took `seconds`, `poll_s` of them in poll, and hold the rounds that are due.

        Returns:
            The topology to plan with from the next op on; None if it stays.
        """
        stragglers, link_monitor = self._stragglers, self._link_monitor
        if stragglers is not None and not stragglers.is_due(spec, in_force, poll_s):
            stragglers = None
        if link_monitor is not None and not link_monitor.is_due(spec, in_force, seconds):
            link_monitor = None
        if not spec.specification.synchronizes or (stragglers is None and link_monitor is None):
            return None
        waits = stragglers.report() if stragglers is not None else np.empty(0)
        traffic = link_monitor.report() if link_monitor is not None else np.empty(0)
        reports = self._all_gather_report(np.concatenate((waits, traffic)))
        if stragglers is not None:
            stragglers.consider(reports[:, : len(waits)], topology)
        return link_monitor.consider(reports[:, len(waits) :]) if link_monitor is not None else None

    def _all_gather_report(self, report: Report) -> Report:
        """Every rank's report, one a row."""
        reports = np.empty((self._size, len(report)))
        gather = OpSpec("all_gather", "uint8", None, None, (report.nbytes,) * self._size)
        self._run_op(gather, report.ctypes.data, reports.ctypes.data)
        return reports
