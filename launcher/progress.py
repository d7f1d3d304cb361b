"""What a training script tells about itself. Under the launcher it goes to the live view and the summary; without one
(plain python, torchrun) rank 0 prints it.

    from launcher import progress

    progress.report(step=10, of=300, loss=2.7, tokens=4096)
    progress.note(heldout_loss=2.1)
    torch.save(state, progress.checkpoint_dir() / "last.pt")
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
PLAN_LOOKS_APART_S = 1.0
GLOBAL_BATCH = "NARROWGAUGE_GLOBAL_BATCH"


def report(step: int, *, of: int | None = None, loss: float | None = None, tokens: int = 0, **values: float) -> None:
    """Tell how far this rank is. Call it on every rank, each step or every few steps.

    Args:
        step: steps done, counted from 1.
        of: the last step that will be done, if known; gives the time left.
        loss: this rank's loss; the launcher shows the mean over ranks.
        tokens: tokens (or samples) that this rank trained on since its last report.
        values: further numbers to keep in events.jsonl.

    The seconds spent waiting for communication since the last report are added from `collectives.stats()`.
    """
    _teller.report(step, of, loss, tokens, values)


def note(**values: Any) -> None:
    """Tell facts for the summary, such as `heldout_loss=2.1`: numbers, texts, lists or mappings of these."""
    _teller.note(values)


def checkpoint_dir() -> Path:
    """The folder for checkpoints, made if need be: the run's own, or ./checkpoints without a launcher."""
    folder = checkpoint_path()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def checkpoint_path() -> Path:
    """The same folder, which may not be there."""
    return Path(os.environ.get(CHECKPOINT_DIR, "checkpoints"))


def global_batch(default: int) -> int:
    """Samples of all ranks together in a step, as the job's `global_batch` says; `default` if it says nothing."""
    return int(os.environ.get(GLOBAL_BATCH) or default)


def tell(event: str, **content: Any) -> None:
    """Tell of something but progress; `event` is one of `launcher.record.events.FROM_SCRIPT`, `content` its fields."""
    _teller.tell(event, content)


def finished() -> None:
    """Tell what communication cost in all; the launcher's own worker calls this when the script has ended."""
    if isinstance(_teller, _ToLauncher) and _rank() == 0:
        _teller.note({"collectives": collectives.stats()})


def raised(error: BaseException) -> None:
    """Tell that the script ended by an exception; the launcher's own worker calls this."""
    if isinstance(_teller, _ToLauncher):
        kind, message, culprit = described(error)
        _teller.send("Raised", kind=kind, message=message[:2000], culprit=culprit)


def described(error: BaseException) -> tuple[str, str, int | None]:
    """Class name, message and culprit of an exception, or of the one of ours that torch wrapped.

    An error that goes through torch's C++, as under DistributedDataParallel, comes out as a RuntimeError that has
    nothing but its text: "...: PeerLost: rank 0 ...\n\nAt:\n  file(line): function".
    """
    kind, message = type(error).__qualname__, str(error).partition("\n\nAt:\n")[0]
    for known in _chain(error):
        if isinstance(known, collectives.CollectiveError):
            return kind, message, known.culprit
    wrapped = _WRAPPED.search(message) if isinstance(error, RuntimeError) else None
    if wrapped is None:
        return kind, message, None
    blamed = _BLAMED.findall(message)  # each quotes the one that it heard, so the last is the first
    return wrapped["kind"], wrapped["message"], int(blamed[-1]) if blamed else None


_KINDS = [
    collectives.CollectiveError.__name__,
    *(kind.__name__ for kind in collectives.CollectiveError.__subclasses__()),
]
_WRAPPED = re.compile(rf"(^|: )(?P<kind>{'|'.join(_KINDS)}): (?P<message>.*)", re.DOTALL)
_BLAMED = re.compile(r"\(op \d+\): rank (\d+) \(")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


class _ToLauncher:
    """Sends each message as a line of JSON through the pipe that the launcher left open."""

    def __init__(self, fd: int) -> None:
        self._pipe = os.fdopen(fd, "w", buffering=1, encoding="utf-8")
        self._before: dict[str, float] = {}
        self._planned: Any = None
        self._plan_looked_at = float("-inf")

    def report(self, step: int, of: int | None, loss: float | None, tokens: int, values: dict[str, float]) -> None:
        since = self._since_last(collectives.stats())
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
            waits={name: seconds for name, seconds in since.items() if name.startswith("rank ") and seconds > 0},
            values=values,
        )
        self.plan()

    def _since_last(self, stats: dict[str, Any]) -> dict[str, float]:
        """What the counters have gained since the last call; waits are those of the group that waits most."""
        now: dict[str, float] = {name: value for name, value in stats.items() if name != "waited_for"}
        now |= max(stats["waited_for"].values(), key=lambda waits: sum(waits.values()), default={})
        since = {name: value - self._before.get(name, 0.0) for name, value in now.items()}
        self._before = now
        return since

    def plan(self) -> None:
        """Tell the plan of the default group, from rank 0, whenever it is another. A group on Gloo has none."""
        if _rank() == 0 and time.monotonic() >= self._plan_looked_at + PLAN_LOOKS_APART_S:
            self._plan_looked_at = time.monotonic()
            with suppress(collectives.UsageError):
                plan = collectives.plan()
                if plan.topology is not self._planned:  # the engine plans anew when it sees other links
                    self._planned = plan.topology
                    self.send("Planned", plan=plan.summary())

    def note(self, values: dict[str, Any]) -> None:
        self.send("Noted", values=values)

    def tell(self, event: str, content: dict[str, Any]) -> None:
        self.send(event, **content)

    def send(self, event: str, **content: Any) -> None:
        message = {"event": event, "rank": _rank(), "at": time.time(), **content}
        self._pipe.write(json.dumps(message) + "\n")


class _ToTerminal:
    """Prints on rank 0; the speeds are those of rank 0 times the number of ranks."""

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

    def tell(self, event: str, content: dict[str, Any]) -> None:
        if _rank() == 0:
            print(event.lower(), ", ".join(f"{name} {value}" for name, value in content.items()), flush=True)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _from_environment() -> _ToLauncher | _ToTerminal:
    """The launcher's pipe if there is one; it is not handed on to processes that the script starts."""
    fd = os.environ.pop(REPORT_FD, None)
    if fd is None:
        return _ToTerminal()
    os.set_inheritable(int(fd), False)
    return _ToLauncher(int(fd))


def _tell_balanced(change: rebalance.Rebalanced) -> None:
    tell("Balanced", old=change.old, new=change.new, speeds=change.speeds, gain=change.gain)


_teller = _from_environment()
rebalance.listeners.append(_tell_balanced)
