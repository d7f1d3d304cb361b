"""What `launcher list`, `status` and `top` show: pure functions from a replay to JSON and to lines of text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.monitor.terminal import first_sentence, format_duration, format_line
from launcher.record.catalog import State
from launcher.record.replay import RankProgress, Replay
from launcher.record.seats import RankPlacement


@dataclass(frozen=True)
class RunRow:
    """A run in the list. None means unknown."""

    run: str
    state: State
    started_at: float | None
    ranks: int | None
    step: int | None
    address: str | None


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose columns are as wide as their widest cells."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def format_list(rows: Sequence[RunRow]) -> list[str]:
    """The table of `launcher list`."""
    head = ("run", "state", "started", "ranks", "step", "cluster")
    return aligned(
        [
            head,
            *(
                (
                    row.run,
                    row.state,
                    time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.started_at)) if row.started_at else "",
                    _number(row.ranks),
                    _number(row.step),
                    row.address or "local",
                )
                for row in rows
            ),
        ]
    )


def status(
    row: RunRow, seats: Sequence[RankPlacement], replay: Replay, failure: dict[str, Any] | None
) -> dict[str, Any]:
    """The JSON of `launcher status`.

    Args:
        seats: empty as long as the ranks are not placed.
        failure: as in a summary.
    """
    paces = replay.paces()
    if row.state == "stopped":
        replay.mark_stopped()
    return {
        **asdict(row),
        "progress": asdict(replay.tally.last) if replay.tally.last else None,
        "ranks": [_rank(rank, seats, replay, paces[rank]) for rank in range(replay.world_size)],
        "failure": failure,
    }


def format_status(found: dict[str, Any], replay: Replay) -> list[str]:
    """The text of `launcher status`.

    Args:
        found: its JSON, from `status`.
    """
    where = found["address"] or "this machine"
    age = f", started {format_duration(time.time() - found['started_at'])} ago" if found["started_at"] else ""
    lines = [f"{found['run']}: {found['state']}, on {where}{age}"]
    lines += [format_line(replay.tally.last)] if replay.tally.last else []
    head = ("rank", "host", "address", "interface", "state", "step", "loss", "share")
    lines += aligned(
        [
            head,
            *(
                (
                    str(rank["rank"]),
                    rank["host"] or "",
                    rank["address"] or "",
                    rank["interface"] or "",
                    rank["state"],
                    _number(rank["step"]),
                    f"{rank['loss']:.4f}" if rank["loss"] is not None else "",
                    _percent(rank["share"]),
                )
                for rank in found["ranks"]
            ),
        ]
    )
    failure = found["failure"]
    if failure is not None:
        who = f"rank {failure['rank']} on {failure['host']}: " if failure["rank"] is not None else ""
        lines += [f"failed: {who}{first_sentence(failure['what'])}"]
    return lines


def format_top(run: str, state: State, seats: Sequence[RankPlacement], replay: Replay) -> list[str]:
    """The text of `launcher top`: where each rank's time went between its last two reports."""
    head = ("rank", "host", "state", "step", "share", "compute ms/step", "wait ms/step", "Mbit/s", "waits for")
    if state == "stopped":
        replay.mark_stopped()
    rows = []
    for rank, pace in enumerate(replay.paces()):
        found = _rank(rank, seats, replay, pace)
        rows.append(
            (
                str(rank),
                found["host"] or "",
                found["state"],
                _number(found["step"]),
                _percent(pace.share),
                f"{1000 * pace.compute_s:.1f}" if pace.compute_s is not None else "",
                f"{1000 * pace.wait_s:.1f}" if pace.wait_s is not None else "",
                f"{pace.bytes_per_s * 8e-6:.0f}" if pace.bytes_per_s is not None else "",
                f"{pace.waits_for[0]}, {pace.waits_for[1]:.0%} of the time" if pace.waits_for else "",
            )
        )
    progress = [format_line(replay.tally.last)] if replay.tally.last else []
    return [f"{run}: {state}", *progress, *aligned([head, *rows])]


def _rank(rank: int, seats: Sequence[RankPlacement], replay: Replay, pace: RankProgress) -> dict[str, Any]:
    seat = seats[rank] if rank < len(seats) else None
    latest = replay.tally.latest.get(rank)
    return {
        "rank": rank,
        "host": seat.host if seat else None,
        "address": seat.node.address if seat else None,
        "interface": replay.interfaces.get(rank),
        "state": replay.state.workers[rank].state,
        "step": latest.step if latest else None,
        "loss": latest.loss if latest else None,
        **asdict(pace),
    }


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _percent(part: float | None) -> str:
    return "" if part is None else f"{part:.1%}"
