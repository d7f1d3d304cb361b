"""What a user sees of a run: a live view in a terminal, plain lines in a pipe.

A view has no thread: the loop of the run calls `refresh` several times a second. With a thread of rich's own the view
would be drawn in the middle of an update, and after a crash of the launcher over its traceback.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launcher.record.events import Balanced, Event, Restored
from launcher.record.run_dir import last_traceback
from launcher.record.run_state import RunState
from launcher.record.seats import RankPlacement
from launcher.record.tally import Line, Tally

MIN_INTERVAL_S = 1.0


class PlainView:
    """One line for each stage. Of the lines of progress it prints the first and the last, and between them at most one
    a second: a job of small steps would fill the log of a CI job."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._printed_at = float("-inf")
        self._held: Line | None = None

    def stage(self, text: str) -> None:
        """What the launcher is doing now."""
        self.print(text)

    def seats(self, seats: Sequence[RankPlacement]) -> None:
        """The placement of the ranks."""
        for line in format_placement(seats):
            self.print("  " + line)

    def lines(self, lines: Sequence[Line]) -> None:
        """Lines of progress completed since the last call."""
        for line in lines:
            self._held = line
            self._print_due()

    def refresh(self, state: RunState, tally: Tally) -> None:
        """Show the current state; called several times a second."""
        self._print_due()

    def print(self, text: str) -> None:
        """A line as it is; also while a live view is drawn."""
        print(text, file=self._out, flush=True)

    def log(self, rank: int, line: str) -> None:
        """A line that a worker printed."""
        self.print(f"[rank {rank}] {line}")

    def close(self) -> None:
        """Print the last line of progress, if it is held back, and end the view."""
        self._printed_at = float("-inf")
        self._print_due()

    def _print_due(self) -> None:
        # The newest line only: those in between are skipped, not queued.
        if self._held is not None and self._clock() >= self._printed_at + MIN_INTERVAL_S:
            self.print(format_line(self._held))
            self._held, self._printed_at = None, self._clock()


class LiveView(PlainView):
    """A table of the ranks under one line of progress, redrawn several times a second."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._console = Console(file=out)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._seats: Sequence[RankPlacement] = ()
        self._live.start()

    def seats(self, seats: Sequence[RankPlacement]) -> None:
        self._seats = seats
        super().seats(seats)

    def lines(self, lines: Sequence[Line]) -> None:
        """Not printed: the view shows the last one."""

    def refresh(self, state: RunState, tally: Tally) -> None:
        self._live.update(Group(*self._progress(tally), self._ranks(state, tally)), refresh=True)

    def print(self, text: str) -> None:
        # No markup: a path or an exception with [brackets] is not a style of rich's.
        self._live.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._live.stop()

    def _progress(self, tally: Tally) -> list[Text]:
        if tally.last is None:
            return []
        done = tally.last.step / tally.last.of if tally.last.of else None
        width = max(10, min(50, self._console.width - 12))
        bar = f"{'━' * round(done * width)}{'╌' * (width - round(done * width))} {done:.0%}" if done is not None else ""
        return [Text(format_line(tally.last), style="bold"), *([Text(bar, style="cyan")] if bar else [])]

    def _ranks(self, state: RunState, tally: Tally) -> Table:
        table = Table("rank", "host", "state", "step", "loss", box=None, padding=(0, 2, 0, 0), header_style="dim")
        colours = {"running": "green", "finished": "cyan", "failed": "red", "stopped": "yellow"}
        for seat, worker in zip(self._seats, state.workers, strict=True):
            latest = tally.latest.get(seat.rank)
            step, loss = (
                (str(latest.step), f"{latest.loss:.4f}" if latest.loss is not None else "") if latest else ("", "")
            )
            shown = Text(worker.state, style=colours.get(worker.state, "dim"))
            table.add_row(str(seat.rank), seat.host, shown, step, loss)
        return table


def event_messages(event: Event) -> list[str]:
    """Lines to print for an event other than progress."""
    if isinstance(event, Restored):
        return [f"resuming after step {event.step}, from {event.folder}"]
    if isinstance(event, Balanced):
        return [
            f"shares of the batch: {event.old} -> {event.new}, {event.gain:.0%} less compute time on the slowest rank"
        ]
    return []


def open_view(out: TextIO) -> PlainView:
    """The live view if `out` is a terminal, else plain lines."""
    return LiveView(out) if out.isatty() else PlainView(out)


def format_line(line: Line) -> str:
    """One line of progress, with units."""
    parts = [f"step {line.step}" + (f"/{line.of}" if line.of else "")]
    parts += [f"loss {line.loss:.4f}"] if line.loss is not None else []
    parts += [f"{line.tokens_per_s:,.0f} tokens/s"] if line.tokens_per_s is not None else []
    parts += [f"{1000 * line.step_s:.0f} ms/step"] if line.step_s is not None else []
    parts += [f"waiting {line.wait_share:.0%}"] if line.wait_share is not None else []
    parts += [f"{format_duration(line.left_s)} left"] if line.left_s else []
    return "  ".join(parts)


def format_duration(seconds: float) -> str:
    """Seconds as "48 s", "2 min 05 s", "3 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_placement(seats: Sequence[RankPlacement]) -> list[str]:
    """A line for each host: "host-0 on box-1 (10.0.0.1): ranks 0, 1"."""

    def ranks(block: Sequence[RankPlacement]) -> str:
        return ("ranks " if len(block) > 1 else "rank ") + ", ".join(str(seat.rank) for seat in block)

    hosts: dict[int, list[RankPlacement]] = {}
    for seat in seats:
        hosts.setdefault(seat.host_index, []).append(seat)
    return [
        (f"{block[0].host} (emulated) on {block[0].node.name}" if block[0].emulated else block[0].host)
        + f" ({block[0].node.address}): {ranks(block)}"
        for block in hosts.values()
    ]


def print_summary(summary: dict[str, Any], out: TextIO = sys.stdout) -> None:
    """Print how a run ended. The cause of a failure, its traceback and its log come last, where a user looks first."""
    print(f"\n{summary['name']} {summary['status']} after {format_duration(summary['wall_s'])}", file=out)
    for label, text in _figures(summary):
        print(f"  {label:<10} {text}", file=out)
    for name, value in summary["notes"].items():
        print(f"  {name}: {value}" if "\n" not in str(value) else f"  {name}:\n{_indented(str(value))}", file=out)
    print(f"  folder     {summary['folder']}", file=out)
    failure = summary["failure"]
    if failure is None or summary["status"] == "stopped":
        return
    # A user's eyes are at the end of the output. So the consequences come first, then the traceback, then the cause.
    for other in failure["others"]:
        print(f"  then       rank {other['rank']} ({other['host']}): {first_sentence(other['what'])}", file=out)
    if failure["log"] is None:
        print(f"\n{failure['what']}", file=out)
        return
    traceback = last_traceback(Path(failure["log"]).read_text(encoding="utf-8", errors="replace"))
    if traceback:
        print(f"\nend of the log of rank {failure['rank']} on {failure['host']}:\n", file=out)
        print(_indented(traceback), file=out)
    print(f"\nrank {failure['rank']} on {failure['host']}: {failure['what']}\nits log: {failure['log']}", file=out)


def first_sentence(what: str) -> str:
    """The first sentence of a failure."""
    return str(re.split(r"[.;] |\n", what, maxsplit=1)[0])


def _figures(summary: dict[str, Any]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if summary["first_loss"] is not None:
        found.append(
            ("loss", f"{summary['first_loss']:.4f} -> {summary['final_loss']:.4f} in {summary['steps']} steps")
        )
    if summary["heldout_loss"] is not None:
        found.append(("held out", f"{summary['heldout_loss']:.4f}"))
    if summary["step_s"] is not None:
        speed = f"{1000 * summary['step_s']:.0f} ms/step, of which {summary['comm_wait_share']:.0%} waiting"
        tokens = f"{summary['tokens_per_s']:,.0f} tokens/s, " if summary["tokens_per_s"] else ""
        found.append(("speed", tokens + speed))
    if summary["seconds_to_first_step"] is not None:
        found.append(("first step", f"after {summary['seconds_to_first_step']:.1f} s"))
    return found


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())
