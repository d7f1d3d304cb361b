"""What is made of reports: lines and figures, with numbers that can be checked by hand."""

from __future__ import annotations

from launcher.record.events import Noted, Planned, Reported
from launcher.record.tally import Tally


def reported(rank: int, step: int, at: float, loss: float, wait_s: float = 0.1) -> Reported:
    return Reported(rank, at, step=step, of=30, loss=loss, tokens=1000, wait_s=wait_s)


def test_a_line_comes_when_every_rank_has_reported() -> None:
    tally = Tally(2)
    assert tally.on(reported(0, 1, 10.0, 4.0)) == []
    (first,) = tally.on(reported(1, 1, 10.5, 6.0))
    assert (first.step, first.of, first.loss, first.step_s) == (1, 30, 5.0, None)
    tally.on(reported(1, 11, 14.8, 2.0, wait_s=1.0))
    (second,) = tally.on(reported(0, 11, 15.0, 3.0, wait_s=3.0))
    assert second.loss == 2.5
    assert second.step_s == 0.5
    assert second.tokens_per_s == 2000 / 5
    assert second.wait_share == 0.4
    assert second.left_s == 19 * 0.5


def test_a_rank_with_more_of_the_batch_counts_for_more() -> None:
    tally = Tally(2)
    tally.on(Reported(0, 1.0, step=1, loss=4.0, tokens=300))
    (line,) = tally.on(Reported(1, 1.0, step=1, loss=8.0, tokens=100))
    assert line.loss == 5.0
    tally.on(Reported(0, 2.0, step=2, loss=4.0, tokens=300))
    (line,) = tally.on(Reported(1, 2.0, step=2, loss=8.0))
    assert line.loss == 6.0


def test_a_script_that_reports_on_rank_0_only() -> None:
    tally = Tally(4)
    assert tally.on(reported(0, 1, 10.0, 4.0)) == []
    assert [line.step for line in tally.on(reported(0, 2, 11.0, 3.0))] == [1]
    assert [line.step for line in tally.rest()] == [2]
    assert tally.figures()["final_loss"] == 3.0


def test_figures_leave_out_the_first_report() -> None:
    tally = Tally(2)
    for step, at in ((1, 10.0), (2, 11.0), (5, 14.0)):
        for rank in range(2):
            tally.on(reported(rank, step, at, 10.0 / step + rank))
    assert tally.figures() == {
        "steps": 5,
        "first_loss": 10.5,
        "final_loss": 2.5,
        "tokens_per_s": 1000.0,
        "step_s": 1.0,
        "comm_wait_s": 0.05,
        "comm_wait_share": 0.05,
    }


def test_without_reports_nothing_is_known() -> None:
    assert set(Tally(2).figures().values()) == {None}
    assert Tally(2).rest() == []


def test_notes_of_rank_0_win_and_the_plan_is_kept() -> None:
    tally = Tally(2)
    tally.on(Noted(1, 1.0, {"a": 1, "b": 1}))
    tally.on(Noted(0, 1.0, {"a": 0}))
    tally.on(Noted(1, 2.0, {"a": 2}))
    tally.on(Planned(0, 1.0, {"trees": 3}))
    assert tally.notes == {"a": 0, "b": 1}
    assert tally.plan == {"trees": 3}


def test_it_does_not_grow_with_the_steps() -> None:
    tally = Tally(1)
    for step in range(1, 1000):
        tally.on(reported(0, step, float(step), 1.0))
    assert tally._open == {}
