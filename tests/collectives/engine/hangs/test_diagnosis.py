"""Who holds the others up, as a table of answers."""

from __future__ import annotations

import json

import pytest

from collectives.engine.hangs.diagnosis import Whereabouts, diagnose, report

NAMES = [f"rank {rank} (host-{rank})" for rank in range(12)]


def inside(op: int, *waits_for: int, waited_s: float = 31.0) -> Whereabouts:
    return Whereabouts(op, op + 1, f"op-{op}", waited_s, waits_for, "train.py:7 in step", "a.py:1 in main\nb.py:2 in f")


def outside(begun: int) -> Whereabouts:
    return Whereabouts(None, begun, "op-last", 0.0, (), "train.py:3 in load", "a.py:1 in main")


@pytest.mark.parametrize(
    ("answers", "left", "op", "missing", "culprit"),
    [
        pytest.param([inside(4, 1), outside(4)], [], 4, [1], 1, id="one has not come"),
        pytest.param([outside(4), inside(4, 0)], [], 4, [0], 0, id="rank 0 has not come"),
        pytest.param([inside(4, 1), None], [], 4, [1], 1, id="one does not answer"),
        pytest.param([inside(4, 1), outside(4), None], [], 4, [1, 2], 2, id="who does not answer comes first"),
        pytest.param([inside(4, 1), None, outside(4)], [1], 4, [1, 2], 2, id="who has given up comes last"),
        pytest.param([inside(4, 1), inside(3, 2), outside(3)], [], 4, [1, 2], 2, id="behind is not to blame"),
        pytest.param([inside(4, 1), outside(5)], [], 4, [], None, id="who is done with it is not missing"),
        pytest.param([inside(4, 1), inside(4, 0)], [], 4, [], None, id="all are there"),
    ],
)
def test_who_is_missing_and_who_is_to_blame(
    answers: list[Whereabouts | None], left: list[int], op: int, missing: list[int], culprit: int | None
) -> None:
    found = diagnose(dict(enumerate(answers)), left, NAMES)
    assert found is not None
    assert (found.op, sorted(found.missing), found.culprit) == (op, missing, culprit)


def test_nobody_waits() -> None:
    assert diagnose({0: outside(4), 1: None}, [], NAMES) is None


def test_the_report_names_ranks_op_seconds_and_lines() -> None:
    found = diagnose({0: inside(4, 1), 1: outside(4), 2: inside(3, 1)}, [], NAMES)
    assert found is not None
    assert report(found, "dp", NAMES).splitlines() == [
        "group dp: nothing has moved for 31 s in op-4 (op 4): rank 1 (host-1), rank 2 (host-2) have not joined it",
        "  rank 1 (host-1) is outside any collective after op-last (op 3), at train.py:3 in load; its main thread, "
        "innermost call last:",
        "    a.py:1 in main",
        "  rank 2 (host-2) is still in op-3 (op 3), called at train.py:7 in step, and waits for rank 1 (host-1); its "
        "main thread, innermost call last:",
        "    a.py:1 in main",
        "    b.py:2 in f",
    ]
    found = diagnose({0: inside(4, 1), 1: inside(4, 0)}, [], NAMES)
    assert found is not None
    assert "rank 0 (host-0) waits for rank 1 (host-1)" in report(found, "dp", NAMES)
    found = diagnose({0: inside(4, 1), **dict.fromkeys(range(1, 12), None)}, [], NAMES)
    assert found is not None
    assert "and 3 more have not joined it" in report(found, "dp", NAMES)


def test_an_answer_reads_back_and_nonsense_does_not() -> None:
    answer = inside(4, 1, 2)
    assert Whereabouts.from_message(json.loads(json.dumps(answer.to_message()))) == answer
    for change in ({"op": "x"}, {"waits_for": 3}, {"begun": None}):
        with pytest.raises((TypeError, ValueError)):
            Whereabouts.from_message({**answer.to_message(), **change})


def test_ranks_in_different_collectives_are_named_with_their_lines() -> None:
    """Nobody has sent a header, so no rank could see the difference by itself."""
    summing, casting = (
        Whereabouts(1, 2, f"{name} of 4000 uint8", 31.0, waits_for, f"train.py:{line} in step", "a.py:1 in main")
        for name, waits_for, line in (("all_reduce", (1,), 7), ("broadcast", (0,), 9))
    )
    found = diagnose({0: summing, 1: casting, 2: summing, 3: outside(1)}, [], NAMES)
    assert found is not None
    assert found.culprit == 1, "whoever has not come, either"
    assert report(found, "dp", NAMES) == (
        "group dp: nothing has moved for 31 s, because ranks have called different collectives. rank 0 (host-0): "
        "all_reduce of 4000 uint8 (op 1), called at train.py:7 in step; rank 1 (host-1): broadcast of 4000 uint8 "
        "(op 1), called at train.py:9 in step"
    )
