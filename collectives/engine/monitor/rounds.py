"""Rounds in which all ranks exchange what each has measured, between two ops.

Whether a round is due must not depend on a rank's own clock: the all-gather that carries the reports is an op like any
other, and all ranks must run it at the same place. So it follows from the ops and their predicted seconds alone, which
are equal on all ranks.
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
        if self._stragglers is not None and self._stragglers.is_due(spec, in_force, poll_s):
            self._stragglers.consider(self._all_gather_report(self._stragglers.report()), topology)
        if self._link_monitor is not None and self._link_monitor.is_due(spec, in_force, seconds):
            return self._link_monitor.consider(self._all_gather_report(self._link_monitor.report()))
        return None

    def _all_gather_report(self, report: Report) -> Report:
        """Every rank's report, one a row."""
        reports = np.empty((self._size, len(report)))
        gather = OpSpec("all_gather", "uint8", None, None, (report.nbytes,) * self._size)
        self._run_op(gather, report.ctypes.data, reports.ctypes.data)
        return reports
