"""What a training script reports about itself. Under the launcher it goes to the live view, the metrics and the
summary; without one (plain python, torchrun) rank 0 prints it.

    from launcher import progress

    progress.report(step=10, of=300, loss=2.7, tokens=4096)
    progress.note(heldout_loss=2.1)
    torch.save(state, progress.checkpoint_dir() / "last.pt")

Reports travel as lines of JSON through a pipe to the agent beside the worker, not through its output: a script may
print what it likes, and a line that a library prints can't be taken for a report.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import collectives
from collectives.training import rebalance

REPORT_FD = "NARROWGAUGE_REPORT_FD"
CHECKPOINT_DIR = "NARROWGAUGE_CHECKPOINT_DIR"
PLAN_CHECK_INTERVAL_S = 1.0
GLOBAL_BATCH = "NARROWGAUGE_GLOBAL_BATCH"


def report(step: int, *, of: int | None = None, loss: float | None = None, tokens: int = 0, **values: float) -> None:
    """Report how far this rank is. Call it on every rank after the optimizer step, each step or every few steps.

    The seconds spent waiting for communication since the last report, and for attached models the samples and the
    seconds of forward and backward, are added from `collectives.stats()`. A step counts as done for the run once every
    rank has reported it.

    Args:
        step: steps done, counted from 1; the same on every rank.
        of: the last step that will be done, if known; gives the time left.
        loss: this rank's loss as a Python float (`loss.item()`); the launcher shows the mean over ranks, weighted by
            their tokens if all report some.
        tokens: tokens (or samples) that this rank trained on since its last report.
        values: further numbers to keep in events.jsonl. The launcher does not interpret them.

    Raises:
        TypeError: an argument is not a number that JSON can hold, such as a tensor.
        BrokenPipeError: the agent beside this worker is gone.
    """
    _reporter.report(step, of, loss, tokens, values)


def note(**values: Any) -> None:
    """Add facts to the run's summary, such as `heldout_loss=2.1`. Call it on one rank, at any time; where several ranks
    note the same name, rank 0's latest value is kept, and without one the first.

    Args:
        values: numbers, texts, booleans, None, or lists and mappings of these. `heldout_loss` has a place of its own in
            the summary; the others are its `notes`.

    Raises:
        TypeError: a value that JSON cannot hold, such as a tensor.
        BrokenPipeError: the agent beside this worker is gone.
    """
    _reporter.note(values)


def checkpoint_dir() -> Path:
    """The folder for checkpoints: the run's own, or ./checkpoints without a launcher. Any rank may call it, at any
    time. On a cluster without shared storage it is a folder of that rank's node.

    Raises:
        OSError: it does not exist and cannot be made.
    """
    folder = checkpoint_path()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def checkpoint_path() -> Path:
    """The folder that `checkpoint_dir` makes, which may not exist yet."""
    return Path(os.environ.get(CHECKPOINT_DIR, "checkpoints"))


def global_batch(default: int) -> int:
    """Samples of all ranks together in one step, for example to build a `collectives.Sampler`.

    Args:
        default: what to give if the job has no `global_batch`, or without a launcher.
    """
    return int(os.environ.get(GLOBAL_BATCH) or default)


def send_event(event: str, **content: Any) -> None:
    """Send an event other than a report; for narrowgauge's own modules, such as the checkpoints.

    Args:
        event: a name in `launcher.record.events.FROM_SCRIPT`.
        content: the fields of that class, except `rank` and `at`.
    """
    _reporter.send_event(event, content)


def report_finished() -> None:
    """Add `collectives.stats()` of rank 0 to the summary; the worker calls this after the script has ended."""
    if isinstance(_reporter, _ToLauncher) and _rank() == 0:
        _reporter.note({"collectives": collectives.stats()})


def report_exception(error: BaseException) -> None:
    """Report the exception that ended the script; the worker calls this."""
    if isinstance(_reporter, _ToLauncher):
        kind, message, culprit = describe_exception(error)
        _reporter.send("Raised", kind=kind, message=message[:2000], culprit=culprit)


def describe_exception(error: BaseException) -> tuple[str, str, int | None]:
    """Class name, message and culprit of an exception, or of the CollectiveError that torch wrapped.

    An error that passes through torch's C++, as under DistributedDataParallel, comes out as a RuntimeError of which
    nothing but the text is left: "...: PeerLost: rank 0 ...\n\nAt:\n  file(line): function". So class and culprit are
    read from that text.
    """
    kind, message = type(error).__qualname__, str(error).partition("\n\nAt:\n")[0]
    for known in _chain(error):
        if isinstance(known, collectives.CollectiveError):
            return kind, message, known.culprit
    wrapped = _WRAPPED.search(message) if isinstance(error, RuntimeError) else None
    if wrapped is None:
        return kind, message, None
    blamed = _BLAMED.findall(message)  # each error quotes the one that it received, so the last one came first
    return wrapped["kind"], wrapped["message"], int(blamed[-1]) if blamed else None


_KINDS = [
    collectives.CollectiveError.__name__,
    *(kind.__name__ for kind in collectives.CollectiveError.__subclasses__()),
]
_WRAPPED = re.compile(rf"(^|: )(?P<kind>{'|'.join(_KINDS)}): (?P<message>.*)", re.DOTALL)
_BLAMED = re.compile(r"\(op \d+\): rank (\d+) \(")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it."""
    seen: set[int] = set()  # a `raise ... from` of the user's may make a circle
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


class _ToLauncher:
    """Sends each message as a line of JSON through the pipe whose writing end the agent passed on."""

    def __init__(self, fd: int) -> None:
        # Line-buffered: a report is on its way before the next step, and a crash loses none.
        self._pipe = os.fdopen(fd, "w", buffering=1, encoding="utf-8")
        self._before: dict[str, float] = {}
        self._waits_before: dict[str, dict[str, float]] = {}
        self._planned: Any = None
        self._plan_checked_at = float("-inf")

    def report(self, step: int, of: int | None, loss: float | None, tokens: int, values: dict[str, float]) -> None:
        since, waits = self._since_last(collectives.stats())
        self.send(
            "Reported",
            step=step,
            of=of,
            loss=loss,
            tokens=tokens,
            wait_s=since["wait_s"],
            num_bytes=int(since["bytes"]),
            samples=since["samples"],
            compute_s=since["compute_s"],
            waits={name: seconds for name, seconds in waits.items() if seconds > 0},
            values=values,
        )
        self.plan()

    def _since_last(self, stats: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
        """Increase of the counters since the last call, and of the waits, by rank, of the process group that has waited
        most since then. Groups number their ranks for themselves, so waits of two groups are never compared."""
        now: dict[str, float] = {name: value for name, value in stats.items() if not isinstance(value, dict)}
        waited: dict[str, dict[str, float]] = stats["waited_for"]
        waits = [_increase(waited[group], self._waits_before.get(group, {})) for group in waited]
        since = _increase(now, self._before)
        self._before, self._waits_before = now, waited
        return since, max(waits, key=lambda each: sum(each.values()), default={})

    def plan(self) -> None:
        """Send the plan of the default group, from rank 0, whenever it has changed. A group on Gloo has none."""
        # Asked once a second at most: with steps of a few milliseconds the question would cost more than the report.
        if _rank() == 0 and time.monotonic() >= self._plan_checked_at + PLAN_CHECK_INTERVAL_S:
            self._plan_checked_at = time.monotonic()
            with suppress(collectives.UsageError):
                plan = collectives.plan()
                if plan.topology is not self._planned:  # the engine replans when links change
                    self._planned = plan.topology
                    self.send("Planned", plan=plan.summary())

    def note(self, values: dict[str, Any]) -> None:
        self.send("Noted", values=values)

    def send_event(self, event: str, content: dict[str, Any]) -> None:
        self.send(event, **content)

    def send(self, event: str, **content: Any) -> None:
        message = {"event": event, "rank": _rank(), "at": time.time(), **content}
        self._pipe.write(json.dumps(message) + "\n")


def _increase(now: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """How much each counter has grown; one that has become smaller began anew, as in a group of the same name."""
    return {
        name: value - before.get(name, 0.0) if value >= before.get(name, 0.0) else value for name, value in now.items()
    }


class _ToTerminal:
    """Prints on rank 0. Without a launcher nobody collects the other ranks' tokens, so rank 0's are multiplied by the
    number of ranks."""

    def __init__(self) -> None:
        self._last: tuple[int, float, float] | None = None

    def report(self, step: int, of: int | None, loss: float | None, tokens: int, values: dict[str, float]) -> None:
        if _rank() != 0:
            return
        now, waited_s = time.perf_counter(), float(collectives.stats()["wait_s"])
        line = [f"step {step}" + (f"/{of}" if of else ""), *([f"loss {loss:.4f}"] if loss is not None else [])]
        if self._last and step > self._last[0]:
            elapsed_s = now - self._last[1]
            line += [f"{tokens * int(os.environ.get('WORLD_SIZE', 1)) / elapsed_s:,.0f} tokens/s"] if tokens else []
            line += [f"{1000 * elapsed_s / (step - self._last[0]):.1f} ms/step"]
            line += [f"waiting {(waited_s - self._last[2]) / elapsed_s:.0%}"]
        print("  ".join(line + [f"{name} {value:.4g}" for name, value in values.items()]), flush=True)
        self._last = (step, now, waited_s)

    def note(self, values: dict[str, Any]) -> None:
        if _rank() == 0:
            for name, value in values.items():
                print(f"{name}: {value}", flush=True)

    def send_event(self, event: str, content: dict[str, Any]) -> None:
        if _rank() == 0:
            print(event.lower(), ", ".join(f"{name} {value}" for name, value in content.items()), flush=True)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _from_environment() -> _ToLauncher | _ToTerminal:
    """The launcher's pipe if there is one. Processes that the script starts get neither the variable nor the pipe:
    their reports would be taken for this rank's, and the agent would wait for them to close it."""
    fd = os.environ.pop(REPORT_FD, None)
    if fd is None:
        return _ToTerminal()
    os.set_inheritable(int(fd), False)
    return _ToLauncher(int(fd))


def _report_balanced(change: rebalance.Rebalanced) -> None:
    send_event("Balanced", old=change.old, new=change.new, speeds=change.speeds, gain=change.gain)


_reporter = _from_environment()
rebalance.listeners.append(_report_balanced)
