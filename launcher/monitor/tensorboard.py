"""Scalars for TensorBoard, written by the launcher from the reports of the ranks.

    loss, tokens_per_s, step_s, wait_share      of the run, as the live view shows them
    compute_s/rank-N, wait_s/rank-N             of each rank, seconds per step

Only tensorboard's record format is used, not its writer, which imports TensorFlow where that is installed: seconds of
start-up and hundreds of MB, for nothing that is needed here.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event as Entry
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from launcher.record.events import Event, Reported
from launcher.record.tally import Line

FLUSH_S = 2.0
"""Between two flushes; TensorBoard reloads every few seconds."""


class Scalars:
    """The watcher of one run; writes one events file into `folder`.

    Raises:
        OSError: the folder or the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._out = RecordWriter((folder / name).open("xb"))
        self._steps: dict[int, int] = {}
        self._out.write(Entry(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        self._flush()  # TensorBoard shows a run as soon as its file has the version

    def on(self, event: Event, lines: Sequence[Line]) -> None:
        for line in lines:
            for name in ("loss", "tokens_per_s", "step_s", "wait_share"):
                self._write(name, getattr(line, name), line.step, line.at)
        if isinstance(event, Reported):
            steps = event.step - self._steps.get(event.rank, event.step)
            self._steps[event.rank] = event.step
            if steps > 0:
                for name, seconds in (("compute_s", event.compute_s), ("wait_s", event.wait_s)):
                    self._write(f"{name}/rank-{event.rank}", seconds / steps, event.step, event.at)
        if time.monotonic() >= self._flush_at:
            self._flush()

    def close(self) -> None:
        self._out.close()

    def _write(self, name: str, value: float | None, step: int, at: float) -> None:
        if value is not None:
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            self._out.write(Entry(wall_time=at, step=step, summary=summary).SerializeToString())

    def _flush(self) -> None:
        self._out.flush()
        self._flush_at = time.monotonic() + FLUSH_S
