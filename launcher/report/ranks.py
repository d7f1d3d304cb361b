"""The table of ranks and the lanes of the timeline: (story, seats) -> rows that the template draws. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher import units
from launcher.report.story import Rank, Story


@dataclass(frozen=True)
class RankRow:
    """One rank. Shares are fractions of its own seconds, 0 to 1; None: unknown.

    Attributes:
        batch_share: of all ranks' samples, or of their tokens if no samples were reported.
        waits_for: the rank that it waited for most, and waits_share the fraction of its waiting for others.
    """

    rank: int
    host: str
    state: str
    step: int | None
    batch_share: float | None
    compute_share: float | None
    wait_share: float | None
    rest_share: float | None
    compute: str
    wait: str
    sent: str
    waits_for: str | None
    waits_share: float | None


@dataclass(frozen=True)
class Lane:
    """A rank in the timeline: its start and end, and the part in which it trained, in percent of the run."""

    rank: int
    host: str
    state: str
    left: float
    width: float
    trained_left: float | None
    trained_width: float | None
    marks: tuple[tuple[float, str, str], ...]


def rows(story: Story, seats: Sequence[Mapping[str, Any]]) -> list[RankRow]:
    """In rank order."""
    by_rank = {int(seat["rank"]): seat for seat in seats}
    samples = {number: rank.samples for number, rank in story.ranks.items()}
    if not any(samples.values()):
        samples = {number: rank.tokens for number, rank in story.ranks.items()}
    total = sum(samples.values())
    return [
        _row(number, rank, by_rank.get(number, {}), samples[number] / total if total else None)
        for number, rank in sorted(story.ranks.items())
    ]


def _row(number: int, rank: Rank, seat: Mapping[str, Any], batch_share: float | None) -> RankRow:
    known = rank.seconds > 0
    most = max(rank.waits, key=lambda name: rank.waits[name], default=None)
    waited_s = sum(rank.waits.values())
    # A rank that computes while it communicates may count more than its seconds.
    whole = max(rank.seconds, rank.compute_s + rank.wait_s) or 1.0
    return RankRow(
        rank=number,
        host=str(seat.get("host", units.NOTHING)),
        state=rank.state,
        step=rank.step,
        batch_share=batch_share,
        compute_share=rank.compute_s / whole if known else None,
        wait_share=rank.wait_s / whole if known else None,
        rest_share=max(0.0, 1 - (rank.compute_s + rank.wait_s) / whole) if known else None,
        compute=units.seconds(rank.compute_s if known else None),
        wait=units.seconds(rank.wait_s if known else None),
        sent=units.data(rank.num_bytes if known else None),
        waits_for=most,
        waits_share=rank.waits[most] / waited_s if most is not None and waited_s else None,
    )


def lanes(story: Story, seats: Sequence[Mapping[str, Any]], begin: float, end: float) -> list[Lane]:
    """One for each rank that started, over the time from `begin` to `end`, in seconds since 1970."""
    hosts = {int(seat["rank"]): str(seat["host"]) for seat in seats}
    length = max(end - begin, 1e-9)

    def percent(at: float) -> float:
        return round(min(max(100 * (at - begin) / length, 0.0), 100.0), 3)

    made = []
    for number, rank in sorted(story.ranks.items()):
        if rank.started_at is None:
            continue
        left, right = percent(rank.started_at), percent(rank.ended_at if rank.ended_at is not None else end)
        first, last = rank.first_report_at, rank.last_report_at
        marks = [
            (percent(moment.at), moment.kind, moment.text)
            for moment in story.moments
            if moment.rank == number and moment.kind in ("plan", "trouble")
        ]
        made.append(
            Lane(
                rank=number,
                host=hosts.get(number, ""),
                state=rank.state,
                left=left,
                width=max(right - left, 0.0),
                trained_left=percent(first) if first is not None else None,
                trained_width=percent(last) - percent(first) if first is not None and last is not None else None,
                marks=tuple(marks),
            )
        )
    return made
