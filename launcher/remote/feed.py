"""How a run on a cluster is seen from elsewhere: the driver tells on its output what it writes into the run's folder.

Ray keeps what a job's driver prints, and its head gives it to everybody who asks by HTTP, while the job runs and after
it. So nothing has to run, or stay, for a run to be looked at: no server, no actor. Each line is one JSON object,

    {"file": "logs/rank-1.log", "add": "text"}       append to that file of the run's folder
    {"file": "plan.json", "replace": {...}}          the file's whole content

and `Mirror` turns the lines back into a folder, which all commands read as if the run were here. What else the driver
or Ray prints is kept aside, to explain an early end. So that looking at a run of a week stays cheap, reports are
thinned to one a second for each rank, later to one in ten seconds, with their sums kept; the folder on the driver's
own node has all of them.
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

FIRST_APART_S, LAST_APART_S, GROWTH = 1.0, 10.0, 1 / 1000
"""Seconds between two reports of a rank: this part of the time that the run has taken, within these limits."""


@dataclass
class Thinner:
    """Leaves out reports and adds them to the next one that passes. All ranks' reports of the same steps pass."""

    started_at: float
    _held: dict[int, Reported] = field(default_factory=dict)
    _passed: dict[int, tuple[int, float]] = field(default_factory=dict)
    _newest: int = 0
    _due_step: int = 0
    _due_at: float = 0.0

    def on(self, event: Event, now: float) -> list[Event]:
        """The events to pass on, in order."""
        if not isinstance(event, Reported):
            held = self._held.pop(event.rank, None)
            return [held, event] if held else [event]
        self._held[event.rank] = _together(self._held.get(event.rank), event)
        self._newest = max(self._newest, event.step)
        apart_s = min(max((now - self.started_at) * GROWTH, FIRST_APART_S), LAST_APART_S)
        if now >= self._due_at:
            self._due_step, self._due_at = self._newest, now + apart_s
        passing = [rank for rank in self._held if self._may_pass(rank, now, apart_s)]
        self._passed.update(dict.fromkeys(passing, (self._due_step, now)))
        return [self._held.pop(rank) for rank in passing]

    def _may_pass(self, rank: int, now: float, apart_s: float) -> bool:
        """At the step that is due, once; a rank that lags behind never gets there in time, and passes anyhow."""
        due_step, at = self._passed.get(rank, (None, self.started_at))
        return now >= at + 2 * apart_s or (self._held[rank].step >= self._due_step != due_step)

    def rest(self) -> list[Event]:
        """What is still held back."""
        held, self._held = list(self._held.values()), {}
        return list(held)


def _together(earlier: Reported | None, later: Reported) -> Reported:
    """Two reports of a rank as one."""
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
    """The driver's end: lines on its output."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def add(self, file: str, text: str) -> None:
        self._tell({"file": file, "add": text})

    def replace(self, file: str, content: Any) -> None:
        self._tell({"file": file, "replace": content})

    def _tell(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self._out, flush=True)


@dataclass(frozen=True)
class FedRunDir(RunDir):
    """A run's folder that also goes into the feed. Logs don't: the view gets them line by line."""

    feed: Feed
    thinner: Thinner

    @classmethod
    def fed(cls, run_dir: RunDir, feed: Feed) -> FedRunDir:
        return cls(run_dir.path, run_dir.name, run_dir.id, feed, Thinner(time.time()))

    def append(self, event: Event) -> None:
        super().append(event)
        for passed in self.thinner.on(event, time.time()):
            self._tell(passed)

    def write_plan(self, plan: dict[str, Any]) -> None:
        super().write_plan(plan)
        self.feed.replace(self.plan.name, plan)

    def write_summary(self, summary: dict[str, Any]) -> None:
        super().write_summary(summary)
        for held in self.thinner.rest():
            self._tell(held)
        self.feed.replace(self.summary.name, summary)

    def _tell(self, event: Event) -> None:
        self.feed.add(self.events.name, json.dumps(to_json(event)) + "\n")


class FeedView(PlainView):
    """What a terminal would show of the run, as files in the feed."""

    def __init__(self, run_dir: RunDir, feed: Feed, out: TextIO) -> None:
        super().__init__(out)
        self._run_dir, self._feed = run_dir, feed

    def lines(self, lines: object) -> None:
        """Whoever looks at the run makes them from the events."""

    def seats(self, seats: object) -> None:
        """They are in the plan."""

    def print(self, text: str) -> None:
        with self._run_dir.stages.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        self._feed.add(self._run_dir.stages.name, text + "\n")

    def log(self, rank: int, line: str) -> None:
        path = self._run_dir.log(rank).relative_to(self._run_dir.path)
        self._feed.add(path.as_posix(), line + "\n")


class Mirror:
    """The other end: puts what a driver told into a folder. `others` are the last lines that were no part of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.others: deque[str] = deque(maxlen=40)
        self._half = ""

    def take(self, text: str) -> None:
        """A piece of the driver's output; it may end within a line."""
        *lines, self._half = (self._half + text).split("\n")
        for line in lines:
            self._take_line(line)

    def _take_line(self, line: str) -> None:
        message = _message(line)
        if message is None:
            self.others.append(line)
            return
        path = self.folder / message["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if "replace" in message:
            path.write_text(json.dumps(message["replace"], indent=2) + "\n", encoding="utf-8")
        else:
            with path.open("a", encoding="utf-8") as out:
                out.write(message["add"])


def _message(line: str) -> dict[str, Any] | None:
    """A line of the feed; None if it is something else, or names a file outside the folder."""
    try:
        message = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return None
    if not isinstance(message, dict) or not isinstance(message.get("file"), str) or len(message) != 2:
        return None
    file = PurePosixPath(message["file"])
    inside = not file.is_absolute() and ".." not in file.parts
    return message if inside and ("replace" in message or isinstance(message.get("add"), str)) else None
