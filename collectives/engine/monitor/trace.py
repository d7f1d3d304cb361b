"""A trace of ops, slices and waits that chrome://tracing and ui.perfetto.dev read: one file for each rank and group.

    row "ops"     each op from its start to its end, with what it waited for
    row "waits"   each sleep, named after the rank with outstanding slices
    row "slices"  each slice at the moment when it was there

The loop writes slices and waits into the trace ring: of a very long op the last TRACE_ENTRIES remain. Times are of the
wall clock in microseconds, so the files of several hosts can be laid side by side as far as their clocks agree.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np

from collectives.engine.compiled.connections import TRACE_FIELDS, WAIT, Net
from collectives.engine.compiled.table import DOWN, UP
from collectives.schedule.op import OpSpec

TRACE_ENTRIES = 16 * 1024  # entries
MAX_EVENTS = 200_000  # about 100 MB
OPS, WAITS, SLICES = range(3)
logger = logging.getLogger(__name__)


class Trace:
    """One engine's trace. It is in memory until `write`.

    Args:
        folder: where the file goes; made if missing.
        names: how to call each rank.
    """

    def __init__(self, folder: str, group: str, rank: int, names: list[str], net: Net) -> None:
        plain = "".join(letter if letter.isalnum() else "-" for letter in group)
        self.path = Path(folder) / f"trace-{plain}-rank-{rank}.json"
        self._names, self._rank, self._net = names, rank, net
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._left_out = 0
        self._events: list[dict[str, object]] = [
            {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"{names[rank]}, group {group}"}},
            *(
                {"ph": "M", "name": "thread_name", "pid": rank, "tid": row, "args": {"name": name}}
                for row, name in enumerate(("ops", "waits", "slices"))
            ),
        ]

    def begin(self) -> None:
        """An op of a caller's begins: what the ring holds is of an op of the engine's own, which is not shown."""
        self._net.trace_written[0] = 0

    def op(self, spec: OpSpec, algorithm: str, started_ns: int, ended_ns: int) -> None:
        """Note an op that has ended, and what the trace ring has of it. Times are of the monotonic clock."""
        waited: dict[str, float] = {}
        head = int(self._net.trace_written[0])
        entries = self._net.trace_ring.reshape(-1, TRACE_FIELDS)
        order = range(max(0, head - len(entries)), head)
        for at_ns, kind, peer, value in entries[np.array(order, np.int64) % len(entries)].tolist():
            name = self._names[peer] if peer >= 0 else "several ranks"
            if kind == WAIT:
                waited[name] = waited.get(name, 0.0) + value / 1e6
                self._add(WAITS, f"for {name}", at_ns, value)
            else:
                way = "down from" if kind == DOWN else "up from"
                assert kind in (UP, DOWN)
                self._add(SLICES, f"tree {value >> 32} slice {value & 0xFFFFFFFF} {way} {name}", at_ns, 0)
        args = {"bytes": spec.num_bytes, "forest": algorithm, "waited_ms": {k: round(v, 3) for k, v in waited.items()}}
        self._add(OPS, str(spec), started_ns, ended_ns - started_ns, args)

    def write(self) -> None:
        """Write the file; a warning if that fails, since training matters more."""
        if self._left_out:
            logger.warning("%s: the trace was full; %d events are not in it", self.path, self._left_out)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"traceEvents": self._events, "displayTimeUnit": "ms"}))
        except OSError as error:
            logger.warning("%s: the trace cannot be written: %s", self.path, error.strerror or error)

    def _add(self, row: int, name: str, at_ns: int, took_ns: int, args: dict[str, object] | None = None) -> None:
        if len(self._events) >= MAX_EVENTS:
            self._left_out += 1
            return
        event: dict[str, object] = {"name": name, "ph": "X", "pid": self._rank, "tid": row}
        event["ts"], event["dur"] = (at_ns + self._offset_ns) / 1e3, took_ns / 1e3
        if row == SLICES:
            event["ph"], event["s"] = "i", "t"
            del event["dur"]
        if args:
            event["args"] = args
        self._events.append(event)
