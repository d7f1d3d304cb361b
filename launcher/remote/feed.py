"""How a run on a cluster is seen from elsewhere: the driver prints what it writes into the run's folder.

Ray keeps the output of a job's driver, and its head serves it by HTTP to anybody who asks, during the job and after it.
So the feed needs no port, server or actor of our own, it works through whatever tunnel or proxy leads to the dashboard,
several observers may come and go, and all of it is still there when the run is over or the submitter's machine was off.
What does not survive is a restart of the head without persistent storage. Each line is one JSON object,

    {"file": "logs/rank-1.log", "add": "text"}       append to that file of the run's folder
    {"file": "plan.json", "replace": {...}}          the file's whole content

and `Mirror` turns the lines back into a folder, which all commands read as if the run were local. Other output of the
driver or of Ray is kept aside, to explain an early end.

Every observer reads the output from its beginning. To keep that cheap for a run of a week, reports are thinned to one a
second for each rank, later to one in ten seconds. Their sums are kept, so that speeds come out the same; the folder on
the driver's own node has all reports.
"""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from launcher.monitor.terminal import PlainView
from launcher.record.events import Event, Reported, to_json
from launcher.record.run_dir import RunDir

MIN_INTERVAL_S, MAX_INTERVAL_S, INTERVAL_SHARE = 1.0, 10.0, 1 / 1000
"""Seconds between two reports of a rank: this share of the run's duration so far, within these limits."""


@dataclass
class Thinner:
    """Drops reports and adds their sums to the next one that passes.

    Progress is shown for steps that all ranks have reported, so the ranks must pass reports of the same steps. A due
    step is chosen from time to time, the newest one reported then; each rank passes its first report at or after it.
    """

    started_at: float
    _held: dict[int, Reported] = field(default_factory=dict)
    _passed: dict[int, tuple[int, float]] = field(default_factory=dict)
    _newest: int = 0
    _due_step: int = 0
    _due_at: float = 0.0

    def on(self, event: Event, now: float) -> list[Event]:
        """The events to pass on, in order."""
        if not isinstance(event, Reported):
            # What a rank reported before it failed or finished comes before that in the feed, too.
            held = self._held.pop(event.rank, None)
            return [held, event] if held else [event]
        self._held[event.rank] = _merged(self._held.get(event.rank), event)
        self._newest = max(self._newest, event.step)
        interval_s = min(max((now - self.started_at) * INTERVAL_SHARE, MIN_INTERVAL_S), MAX_INTERVAL_S)
        # The newest step of any rank: every rank reaches it, and none has passed a later one.
        if now >= self._due_at:
            self._due_step, self._due_at = self._newest, now + interval_s
        passing = [rank for rank in self._held if self._may_pass(rank, now, interval_s)]
        self._passed.update(dict.fromkeys(passing, (self._due_step, now)))
        return [self._held.pop(rank) for rank in passing]

    def _may_pass(self, rank: int, now: float, interval_s: float) -> bool:
        """Once for each due step. A rank that lags so far behind that it never reaches a due step passes by time."""
        due_step, at = self._passed.get(rank, (None, self.started_at))
        return now >= at + 2 * interval_s or (self._held[rank].step >= self._due_step != due_step)

    def rest(self) -> list[Event]:
        """The reports held back at the end of the run."""
        held, self._held = list(self._held.values()), {}
        return list(held)


def _merged(earlier: Reported | None, later: Reported) -> Reported:
    """Two successive reports of a rank as one."""
    if earlier is None:
        return later
    names = {**earlier.waits, **later.waits}
    return replace(
        later,
        tokens=earlier.tokens + later.tokens,
        wait_s=earlier.wait_s + later.wait_s,
        num_bytes=earlier.num_bytes + later.num_bytes,
        samples=earlier.samples + later.samples,
        compute_s=earlier.compute_s + later.compute_s,
        waits={name: earlier.waits.get(name, 0.0) + later.waits.get(name, 0.0) for name in names},
    )


class Feed:
    """The driver's end: prints lines."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def add(self, file: str, text: str) -> None:
        self._emit({"file": file, "add": text})

    def replace(self, file: str, content: Any) -> None:
        self._emit({"file": file, "replace": content})

    def _emit(self, message: dict[str, Any]) -> None:
        # Flushed line by line: Ray reads the file, and an observer should be no more than a moment behind.
        print(json.dumps(message), file=self._out, flush=True)


@dataclass(frozen=True)
class FedRunDir(RunDir):
    """A run's folder that is also sent through the feed. Logs are not: `FeedView` sends them line by line, whether the
    workers wrote them here or on their own nodes."""

    feed: Feed
    thinner: Thinner

    @classmethod
    def fed(cls, run_dir: RunDir, feed: Feed) -> FedRunDir:
        return cls(run_dir.path, run_dir.name, run_dir.id, feed, Thinner(time.time()))

    def append(self, event: Event) -> None:
        super().append(event)  # the folder has every report
        for passed in self.thinner.on(event, time.time()):
            self._emit(passed)

    def write_plan(self, plan: dict[str, Any]) -> None:
        super().write_plan(plan)
        self.feed.replace(self.plan.name, plan)

    def write_summary(self, summary: dict[str, Any]) -> None:
        super().write_summary(summary)
        # The summary comes last in the feed, since observers take it as the end.
        for held in self.thinner.rest():
            self._emit(held)
        self.feed.replace(self.summary.name, summary)

    def _emit(self, event: Event) -> None:
        self.feed.add(self.events.name, json.dumps(to_json(event)) + "\n")


class FeedView(PlainView):
    """The view of a driver, which has no terminal: sends what one would show as files in the feed."""

    def __init__(self, run_dir: RunDir, feed: Feed, out: TextIO) -> None:
        super().__init__(out)
        self._run_dir, self._feed = run_dir, feed

    def lines(self, lines: object) -> None:
        """Not sent: observers make them from the events."""

    def seats(self, seats: object) -> None:
        """Not sent: the plan has them."""

    def print(self, text: str) -> None:
        with self._run_dir.stages.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        self._feed.add(self._run_dir.stages.name, text + "\n")

    def log(self, rank: int, line: str) -> None:
        path = self._run_dir.log(rank).relative_to(self._run_dir.path)
        self._feed.add(path.as_posix(), line + "\n")


class Mirror:
    """The observer's end: writes what a driver has sent into a folder. `other_lines` are the last lines of its output
    that do not belong to the feed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.other_lines: deque[str] = deque(maxlen=40)
        self._incomplete = ""

    def write(self, text: str) -> None:
        """Apply a part of the driver's output; it may end within a line."""
        # A piece ends wherever Ray's buffer did, also within a line.
        *lines, self._incomplete = (self._incomplete + text).split("\n")
        for line in lines:
            self._write_line(line)

    def _write_line(self, line: str) -> None:
        message = _message(line)
        if message is None:
            self.other_lines.append(line)
            return
        path = self.folder / message["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not atomic as in RunDir: the follower reads and writes in one thread.
        if "replace" in message:
            path.write_text(json.dumps(message["replace"], indent=2) + "\n", encoding="utf-8")
        else:
            with path.open("a", encoding="utf-8") as out:
                out.write(message["add"])


def _message(line: str) -> dict[str, Any] | None:
    """A line of the feed; None for any other line, and for a file outside the folder: a script prints to the same
    output, by accident or not."""
    try:
        message = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return None
    if not isinstance(message, dict) or not isinstance(message.get("file"), str) or len(message) != 2:
        return None
    file = PurePosixPath(message["file"])
    inside = not file.is_absolute() and ".." not in file.parts
    return message if inside and ("replace" in message or isinstance(message.get("add"), str)) else None
