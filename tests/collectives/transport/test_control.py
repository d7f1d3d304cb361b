"""Control connections: words, then one last message; two threads read."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from collectives.engine.hangs.diagnosis import Whereabouts
from collectives.transport import control
from collectives.transport.control import ControlChannel


@pytest.fixture
def pair() -> Iterator[tuple[ControlChannel, ControlChannel, socket.socket]]:
    """Rank 0's channel to rank 1, rank 1's to rank 0, and the socket of the latter."""
    near, far = socket.socketpair()
    with near, far:
        yield ControlChannel({1: near}), ControlChannel({0: far}), far


def heard(channel: ControlChannel) -> list[tuple[int, Any]]:
    words: list[tuple[int, Any]] = []
    channel.on_word = lambda rank, word: words.append((rank, word))
    return words


def test_words_come_before_the_last_message_and_none_after_it(pair: Any) -> None:
    near, far, _ = pair
    words = heard(far)
    assert near.send_word(1, {"word": "one"})
    assert near.send_word(1, {"word": "two"})
    near.send_abort("OpTimeout", 1, "text")
    near.send_goodbye()
    assert not near.send_word(1, {"word": "three"})
    assert far.read_word(0)
    far.read(0)
    assert words == [(0, {"word": "one"}), (0, {"word": "two"})]
    assert not far.read_word(0), "the last message is for the op"
    assert not far.has_ended(0)
    far.read(0)
    assert far.aborted[0] == control.Abort("OpTimeout", 1, "text")
    assert not far.send_word(0, {"word": "four"})


def test_the_watch_leaves_an_end_for_the_op(pair: Any) -> None:
    near, far, _ = pair
    near._control[1].close()
    assert not far.read_word(0)
    assert far.died == set()
    far.read(0)
    assert far.died == {0}


def test_nothing_there_is_no_end(pair: Any) -> None:
    """Another thread has read what poll reported."""
    _, far, _ = pair
    far.read(0)
    assert far.read_word(0)
    assert not far.has_ended(0)


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\x7f",
        b"\x02\x00\x00\x00[]",
        b"\x01\x00\x00\x00{",
        b"\x01\x00\x00\x003",
        b'\x2a\x00\x00\x00{"kind": "x", "culprit": 1e999, "text":""}',
    ],
)
def test_nonsense_ends_a_connection(pair: Any, said: bytes) -> None:
    near, far, _ = pair
    near._control[1].sendall(said)
    with contextlib.suppress(TypeError):
        assert not far.read_word(0)
    far.read(0)
    assert far.died == {0}


def test_half_a_frame_holds_nobody_up(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_PATIENCE_S", 0.1)
    near, far, _ = pair
    near._control[1].sendall(b"\x09\x00\x00\x00{")
    assert not far.read_word(0)
    far.read(0)
    assert far.died == {0}


def test_a_peer_that_takes_nothing_holds_nobody_up(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_PATIENCE_S", 0.1)
    near, _, _ = pair
    started = time.monotonic()
    while near.send_word(1, {"word": "x" * 8000}):
        assert time.monotonic() - started < 60
    near.send_goodbye()


def test_two_readers_lose_no_word_and_read_none_twice(pair: Any) -> None:
    near, far, _ = pair
    words = heard(far)
    over = threading.Event()

    def read(how: Any) -> None:
        while not over.is_set():
            how(0)

    threads = [threading.Thread(target=read, args=(how,)) for how in (far.read, far.read_word, far.read)]
    for thread in threads:
        thread.start()
    for number in range(500):
        while not near.send_word(1, {"word": number}):
            pass
    deadline = time.monotonic() + 60
    while len(words) < 500 and time.monotonic() < deadline:
        time.sleep(0.01)
    over.set()
    for thread in threads:
        thread.join()
    assert sorted(word["word"] for _, word in words) == list(range(500))


LONG = {
    "smile": "\N{GRINNING FACE}" * 20_000,
    "escape": "\x1b" * 20_000,
    "no UTF-8": "\udc80" * 20_000,
    "a": "a" * 20_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=list(LONG))
def test_a_text_of_any_length_and_kind_arrives_cut(pair: Any, text: str) -> None:
    near, far, _ = pair
    words = heard(far)
    here = Whereabouts(0, 1, text, 0.0, (), text, control.cut(text, 4800)).to_message()
    assert near.send_word(1, {"word": "here", "question": 1, **here})
    near.send_abort("OpTimeout", 1, text)
    far.read(0)
    far.read(0)
    assert not far.died
    ((_, word),) = words
    for got in (word["line"], word["doing"], word["stack"], far.aborted[0].text):
        assert text.startswith(got)
        assert len(got) >= 300


def test_a_word_that_is_too_long_goes_without_its_stack_or_not_at_all(pair: Any) -> None:
    near, far, _ = pair
    words = heard(far)
    assert near.send_word(1, {"word": "here", "stack": "x" * 20_000})
    assert not near.send_word(1, {"word": "x" * 20_000})
    assert near.send_word(1, {"word": "there"})
    far.read(0)
    far.read(0)
    assert [word for _, word in words] == [{"word": "here", "stack": ""}, {"word": "there"}]


@pytest.mark.parametrize("text", ["", "abc", 'a\N{GRINNING FACE}\x1b\udc80"b' * 9])
def test_what_is_cut_is_as_long_as_it_may_be(text: str) -> None:
    for limit in range(120):
        for kept, more in (
            (control.cut(text, limit), text[: len(control.cut(text, limit)) + 1]),
            (control.cut(text, limit, keep_end=True), text[-len(control.cut(text, limit, keep_end=True)) - 1 :]),
        ):
            assert size(kept) <= limit
            assert kept == text or size(more) > limit
    assert control.cut(text, 10_000) == text


def size(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode("utf-8", "backslashreplace")) - 2


@pytest.mark.parametrize("is_read", [False, True])
def test_a_rank_that_gave_up_is_there_until_its_connection_ends(pair: Any, is_read: bool) -> None:
    near, far, _ = pair
    near.send_abort("OpMismatch", 1, "text")
    if is_read:
        far.read(0)
    assert far.ending(0) == control.Ending("gave up: text", is_abort=True)
    assert far.departure(0) is None
    near._control[1].close()
    assert far.departure(0) == far.ending(0) == control.Ending("gave up: text", is_abort=True)


@pytest.mark.parametrize("is_read", [False, True])
def test_a_rank_whose_process_is_about_to_end_is_not_waited_for(pair: Any, is_read: bool) -> None:
    """Its connection may stay for long: its other threads may wait for somebody."""
    near, far, _ = pair
    near.send_abort("CollectiveError", 0, "ended with ValueError", ends=True)
    if is_read:
        far.read(0)
    assert far.departure(0) == control.Ending("gave up: ended with ValueError")


def test_a_death_and_a_goodbye_are_departures(pair: Any) -> None:
    near, far, _ = pair
    assert far.departure(0) is None
    near.send_goodbye()
    assert far.departure(0) == control.LEFT
    near._control[1].close()
    assert far.departure(0) == control.LEFT
    assert near.departure(1) is None, "this end is closed"


def test_an_end_without_a_message_is_a_departure(pair: Any) -> None:
    near, far, _ = pair
    near._control[1].close()
    assert far.departure(0) == control.DIED


def test_an_end_that_this_process_closed_says_nothing_of_the_peer() -> None:
    near, far = socket.socketpair()
    with far:
        os.close(near.fileno())  # as another thread does between the look at the descriptor and the read
        assert control.ending(near) is None
        near.detach()
