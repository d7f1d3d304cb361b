"""What events add up to."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from launcher.record.events import Event, Exited, Lost, Planned, Raised, Reported, Started
from launcher.report.story import MAX_POINTS, Point, Story, build, merged, thinned


def story_of(*events: Event, world_size: int = 2) -> Story:
    return build(events, world_size)


def report(rank: int, at: float, step: int, **more: float) -> Reported:
    return Reported(rank, at, step, **more)


def test_points_and_totals_leave_out_each_rank_s_first_report() -> None:
    story = story_of(
        report(0, 10, 1, tokens=5, wait_s=9, compute_s=9, num_bytes=99, loss=4),
        report(1, 10, 1, tokens=5, wait_s=9, compute_s=9, num_bytes=99, loss=2),
        report(0, 14, 5, tokens=8, wait_s=1, compute_s=2, num_bytes=10, samples=3, loss=2),
        report(1, 14, 5, tokens=8, wait_s=3, compute_s=1, num_bytes=20, samples=1, loss=2),
    )
    first, second = story.points
    assert (first.steps, first.seconds, first.wait_s, first.compute_s, first.loss) == (0, 0, 0, 0, 3)
    assert second == Point(step=5, at=14, steps=4, seconds=4, tokens=16, wait_s=2, compute_s=1.5, loss=2)
    assert second.rest_s == 0.5
    one = story.ranks[1]
    assert (one.wait_s, one.compute_s, one.num_bytes, one.samples, one.seconds, one.rest_s) == (3, 1, 20, 1, 4, 0)
    assert story.tally.figures()["comm_wait_share"] == 0.5


@dataclass(frozen=True)
class Balanced(Event):
    shares: list[int]


def test_an_event_without_a_place_of_its_own_becomes_a_moment() -> None:
    story = story_of(Balanced(0, 3.0, [1, 2]), world_size=1)
    assert [moment.text for moment in story.moments] == ["Balanced, shares [1, 2]"]


@pytest.mark.parametrize(
    ("event", "state", "kind", "text"),
    [
        (Started(0, 1, 77, "log"), "running", "start", "process 77 started"),
        (Exited(0, 1, 0), "finished", "end", "ended with status 0"),
        (Exited(0, 1, 3), "failed", "trouble", "ended with status 3"),
        (Exited(0, 1, -9), "failed", "trouble", "killed by signal 9 (SIGKILL)"),
        (Exited(0, 1, -15), "stopped", "end", "stopped by signal 15 (SIGTERM)"),
        (Lost(0, 1, "the node is gone"), "lost", "trouble", "the node is gone"),
        (Raised(0, 1, "ValueError", "no"), "not started", "trouble", "ValueError: no"),
    ],
)
def test_moments(event: Event, state: str, kind: str, text: str) -> None:
    story = story_of(event, world_size=1)
    assert (story.ranks[0].state, story.moments[0].kind, story.moments[0].text) == (state, kind, text)


def test_a_second_plan_is_a_new_one() -> None:
    story = story_of(
        Planned(0, 1, {"algorithm": "direct", "fingerprint": 1}),
        Planned(0, 2, {"algorithm": "ring", "fingerprint": 2, "bottleneck": "up of a"}),
    )
    assert [moment.text for moment in story.moments] == ["plan: direct", "new plan: ring, limited by up of a"]


def test_a_long_run_is_thinned_and_keeps_its_sums() -> None:
    steps = 20_011
    story = story_of(
        *(report(0, step / 8, step, tokens=3, wait_s=0.25 / 8, loss=1) for step in range(1, steps + 1)), world_size=1
    )
    assert MAX_POINTS / 4 < len(story.points) <= MAX_POINTS
    assert sum(point.steps for point in story.points) == steps - 1
    assert sum(point.tokens for point in story.points) == pytest.approx(3 * (steps - 1))
    assert sum(point.wait_s for point in story.points) == pytest.approx((steps - 1) / 32)
    assert story.points[-1].step == steps
    assert all(point.loss == pytest.approx(1) for point in story.points)


def test_a_loss_that_few_steps_told_is_not_lost() -> None:
    points = [Point(step, step, 1, 1, 0, 0, 0, 4.0 if step == 2 else None) for step in range(4)]
    assert merged(points).loss == 4
    assert [point.loss for point in thinned(points, 2)] == [None, 4]


def test_nothing_at_all() -> None:
    story = build([], 2)
    assert (story.points, story.moments, story.first_at) == ([], [], None)
