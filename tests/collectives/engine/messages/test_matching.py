"""Which message goes to which receive: decided without sockets, so tested as tables."""

from __future__ import annotations

import random

import pytest

from collectives.engine.messages.matching import Arrival, Matcher, Request

ANY = None


def receive(source: int | None, tag: int = 0) -> Request:
    return Request(False, source, tag, memoryview(bytearray(4)), 0)


def message(source: int, tag: int = 0) -> Arrival:
    return Arrival(source, tag, 4, 0, None)


@pytest.mark.parametrize(
    ("posted", "comes", "matched"),
    [
        ([(1, 0), (2, 0)], (2, 0), 1),
        ([(1, 0), (1, 0)], (1, 0), 0),
        ([(1, 5), (1, 6)], (1, 6), 1),
        ([(ANY, 0), (1, 0)], (1, 0), 0),
        ([(1, 0), (ANY, 0)], (1, 0), 0),
        ([(2, 0), (ANY, 0)], (1, 0), 1),
        ([(ANY, 1)], (1, 0), None),
        ([], (1, 0), None),
    ],
)
def test_a_message_goes_to_the_first_receive_that_it_fits(
    posted: list[tuple[int | None, int]], comes: tuple[int, int], matched: int | None
) -> None:
    matcher = Matcher()
    receives = [receive(*each) for each in posted]
    assert [matcher.post(each) for each in receives] == [None] * len(receives)
    assert matcher.arrive(message(*comes)) is (None if matched is None else receives[matched])


@pytest.mark.parametrize(
    ("came", "wanted", "matched"),
    [
        ([(1, 0), (1, 0)], (1, 0), 0),
        ([(1, 0), (2, 0)], (2, 0), 1),
        ([(2, 0), (1, 0)], (ANY, 0), 0),
        ([(2, 7), (1, 0)], (ANY, 0), 1),
        ([(1, 1)], (1, 0), None),
        ([(1, 1)], (ANY, 0), None),
    ],
)
def test_a_receive_takes_the_first_message_that_fits(
    came: list[tuple[int, int]], wanted: tuple[int | None, int], matched: int | None
) -> None:
    matcher = Matcher()
    messages = [message(*each) for each in came]
    assert [matcher.arrive(each) for each in messages] == [None] * len(messages)
    assert matcher.post(receive(*wanted)) is (None if matched is None else messages[matched])


def test_what_is_withdrawn_gets_nothing() -> None:
    matcher = Matcher()
    first, second = receive(ANY), receive(ANY)
    matcher.post(first)
    matcher.post(second)
    assert matcher.waiting_for_any() == [first, second]
    matcher.withdraw(first)
    matcher.withdraw(first)
    assert matcher.from_any == 1
    assert matcher.arrive(message(3)) is second
    assert matcher.from_any == 0


def test_as_a_plain_list_would_match() -> None:
    """The slow definition: one list of receives and one of messages, searched from the front."""
    draw = random.Random(11)
    for _ in range(200):
        matcher, receives, messages = Matcher(), list[Request](), list[Arrival]()
        for _ in range(60):
            tag = draw.randrange(2)
            if draw.random() < 0.5:
                request = receive(draw.choice([ANY, 0, 1, 2]), tag)
                wanted = next((m for m in messages if m.tag == tag and request.peer in (ANY, m.source)), None)
                assert matcher.post(request) is wanted
                messages.remove(wanted) if wanted is not None else receives.append(request)
            else:
                arrival = message(draw.randrange(3), tag)
                taker = next((r for r in receives if r.tag == tag and r.peer in (ANY, arrival.source)), None)
                assert matcher.arrive(arrival) is taker
                receives.remove(taker) if taker is not None else messages.append(arrival)
            assert matcher.from_any == sum(each.peer is ANY for each in receives)
        assert set(matcher.waiting_for_any()) == {each for each in receives if each.peer is ANY}
