"""Messages between engines: what arrives, what waits, and what is said when it does not."""

from __future__ import annotations

import contextlib
import logging
import random
import struct
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from collectives.engine.messages import messenger
from collectives.engine.messages.frames import (
    ANNOUNCE,
    CREDIT,
    DATA,
    EAGER,
    EAGER_BYTES,
    HEADER_BYTES,
    MAX_TAG,
    READY,
    WINDOW_BYTES,
    Header,
    pack,
)
from collectives.engine.messages.matching import Request
from collectives.engine.runner import Engine
from collectives.errors import (
    CollectiveError,
    GroupClosed,
    OpMismatch,
    OpTimeout,
    PeerLost,
    ProtocolError,
    UsageError,
)
from tests.collectives.engine.group import AT_ONCE_S, engines, errors_of, on_all
from tests.collectives.engine.test_faults import HOSTS, all_reduce, die

SIZES = (0, 1, 3, 1000, EAGER_BYTES // 4, EAGER_BYTES // 4 + 1, 1_000_003)
Floats = NDArray[np.float32]


def send(engine: Engine, peer: int, value: Floats, tag: int = 0) -> Request:
    return engine.messages.send(peer, tag, value.ctypes.data, value.nbytes, "float32", value)


def receive(engine: Engine, peer: int | None, value: Floats, tag: int = 0, dtype: str = "float32") -> Request:
    return engine.messages.receive(peer, tag, value.ctypes.data, value.nbytes, dtype, value)


def wait(engine: Engine, request: Request, timeout_s: float = 200.0) -> None:
    assert engine.messages.wait(request, timeout_s)
    if request.error is not None:
        raise request.error


def room(count: int) -> Floats:
    return np.full(count, -1, np.float32)


def test_all_sizes_in_both_directions_at_once() -> None:
    with engines(HOSTS) as group:

        def exchange(rank: int) -> None:
            engine, left, right = group[rank], (rank - 1) % 3, (rank + 1) % 3
            for count in SIZES:
                got = room(count)
                requests = [send(engine, right, np.arange(count, dtype=np.float32) + rank), receive(engine, left, got)]
                for request in requests:
                    wait(engine, request)
                np.testing.assert_array_equal(got, np.arange(count, dtype=np.float32) + left)
                assert requests[1].peer == left

        on_all(3, exchange)


def test_messages_beside_collectives() -> None:
    """A long message is under way while all-reduces run, in both orders on the ranks."""
    with engines(HOSTS) as group:

        def both(rank: int) -> None:
            engine, got = group[rank], room(3_000_000)
            if rank == 1:
                all_reduce(engine)
            requests = [receive(engine, 0, got)] if rank else [send(engine, peer, got + 5) for peer in (1, 2)]
            if rank != 1:
                all_reduce(engine)
            for request in requests:
                wait(engine, request)
            assert rank == 0 or (got == 4).all()

        on_all(3, both)


def test_tags_keep_messages_apart_and_one_tag_keeps_order() -> None:
    with engines(HOSTS[:2]) as group:
        for number in range(10):
            wait(group[0], send(group[0], 1, np.full(4, number, np.float32), tag=number % 2))
        got = [room(4) for _ in range(10)]
        for number in (1, 3, 5, 7, 9, 0, 2, 4, 6, 8):
            wait(group[1], receive(group[1], 0, got[number], tag=number % 2))
        assert [each[0] for each in got] == list(range(10))


def test_what_comes_unasked_is_bounded() -> None:
    """The sender stops sending at once and announces when its window is used up; then all arrives, in order."""
    count, each = 64, EAGER_BYTES // 4
    with engines(HOSTS[:2]) as group:
        sends = [send(group[0], 1, np.full(each, number, np.float32)) for number in range(count)]
        other = room(1)
        last = send(group[0], 1, np.ones(1, np.float32), tag=1)
        wait(group[1], receive(group[1], 0, other, tag=1))  # behind all of them, so they have been looked at
        link = group[1].messages._links[0]
        assert WINDOW_BYTES - 2 * EAGER_BYTES < link.kept <= WINDOW_BYTES
        assert link.unclaimed == count - link.kept // EAGER_BYTES
        for number in range(count):
            value = room(each)
            wait(group[1], receive(group[1], 0, value))
            assert (value == number).all()
        for request in [*sends, last]:
            wait(group[0], request)
        assert link.kept < WINDOW_BYTES // 2
        assert link.unclaimed == 0
        wait(group[0], send(group[0], 1, np.ones(each, np.float32)))  # there is credit again: nobody receives it
        wait(group[1], receive(group[1], 0, room(each)))


def test_from_any_source() -> None:
    with engines(HOSTS) as group:
        values = [room(20_000) for _ in range(4)]
        requests = [receive(group[0], None, value) for value in values[:2]]

        def work(rank: int) -> None:
            if rank:
                for number in (1, 2):
                    wait(group[rank], send(group[rank], 0, np.full(20_000, 10 * rank + number, np.float32)))
                return
            requests.extend(receive(group[0], None, value) for value in values[2:])
            for request in requests:
                wait(group[0], request)

        on_all(3, work)
        by_source: dict[int | None, list[float]] = {}
        for request, value in zip(requests, values, strict=True):
            assert (value == value[0]).all()
            by_source.setdefault(request.peer, []).append(float(value[0]))
        assert by_source == {1: [11.0, 12.0], 2: [21.0, 22.0]}


def test_nobody_waits_and_the_message_comes_all_the_same() -> None:
    with engines(HOSTS[:2]) as group:
        value = room(2_000_000)
        sent, received = send(group[0], 1, value + 3), receive(group[1], 0, value)
        deadline = time.monotonic() + AT_ONCE_S
        while not (sent.done and received.done) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert sent.error is received.error is None
        assert (value == 2).all()


def test_many_threads_wait_at_once() -> None:
    with engines(HOSTS[:2]) as group:

        def talk(rank: int, tag: int) -> None:
            for number in range(30):
                value = np.full(number * 1500, number, np.float32)
                if rank == number % 2:
                    wait(group[rank], send(group[rank], 1 - rank, value, tag))
                else:
                    got = room(len(value))
                    wait(group[rank], receive(group[rank], 1 - rank, got, tag))
                    np.testing.assert_array_equal(got, value)

        on_all(12, lambda each: talk(each % 2, each // 2))


def test_asking_makes_progress() -> None:
    with engines(HOSTS[:2]) as group:
        value = room(500_000)
        sent, received = send(group[0], 1, value + 3), receive(group[1], 0, value)
        deadline = time.monotonic() + AT_ONCE_S
        while not (group[0].messages.test(sent) and group[1].messages.test(received)):
            assert time.monotonic() < deadline
        assert (value == 2).all()


def test_one_who_loses_patience_has_lost_nothing() -> None:
    with engines(HOSTS[:2]) as group:
        value = room(4)
        request = receive(group[1], 0, value)
        assert not group[1].messages.wait(request, 100.0, patience_s=0.05)
        wait(group[0], send(group[0], 1, value + 2))
        wait(group[1], request)
        assert (value == 1).all()


# What goes wrong


@pytest.mark.parametrize(
    ("count", "dtype", "words"),
    [
        (5, "float32", "got 16 bytes of float32 from rank 0 (farm-a); this rank has a tensor of 20 bytes of float32"),
        (3, "float32", "got 16 bytes of float32 from rank 0 (farm-a); this rank has a tensor of 12 bytes of float32"),
        (4, "int32", "got 16 bytes of float32 from rank 0 (farm-a); this rank has a tensor of 16 bytes of int32"),
    ],
)
@pytest.mark.parametrize("posted_first", [False, True])
def test_a_message_that_does_not_fit_shows_both_sides(count: int, dtype: str, words: str, posted_first: bool) -> None:
    with engines(HOSTS[:2]) as group:
        value = room(count)
        if not posted_first:
            send(group[0], 1, room(4), tag=7)
            wait(group[0], send(group[0], 1, room(1)))
            wait(group[1], receive(group[1], 0, room(1)))  # by now the other is here, too
        request = receive(group[1], 0, value, tag=7, dtype=dtype)
        if posted_first:
            send(group[0], 1, room(4), tag=7)
        with pytest.raises(OpMismatch) as caught:
            wait(group[1], request)
        assert "rank 1 (farm-a), receive with tag 7" in str(caught.value)
        assert words in str(caught.value)
        assert caught.value.culprit == 0
        assert (value == -1).all()
        pending = [receive(group[0], 1, room(1)) for _ in range(2)]  # the sender is told, too
        for request in pending:
            with pytest.raises(OpMismatch, match="rank 1"):
                wait(group[0], request)


def test_a_long_message_that_does_not_fit_fails_on_both_sides() -> None:
    with engines(HOSTS[:2]) as group:
        errors = errors_of(
            2,
            lambda rank: (
                wait(group[1], receive(group[1], 0, room(999_999)))
                if rank
                else wait(group[0], send(group[0], 1, room(1_000_000)))
            ),
        )
        for error in errors:
            assert isinstance(error, OpMismatch), error
            assert "4000000 bytes" in str(error)
            assert "3999996 bytes" in str(error)


def test_plain_bytes_fit_every_dtype() -> None:
    with engines(HOSTS[:2]) as group:
        value = room(4)
        send(group[0], 1, value + 2)
        wait(group[1], receive(group[1], 0, value, dtype="uint8"))
        assert (value == 1).all()


@pytest.mark.parametrize("count", [10, 5_000_000])
def test_a_dead_peer_is_named_with_its_host_and_log(count: int) -> None:
    with engines(HOSTS, log="logs/rank.log") as group:
        started = time.monotonic()
        threading.Timer(0.1, die, [group[2]]).start()
        errors = errors_of(2, lambda rank: wait(group[rank], receive(group[rank], 2, room(count))))
        assert time.monotonic() - started < AT_ONCE_S
        for error in errors:
            assert isinstance(error, PeerLost), error
            assert error.culprit == 2
            assert "rank 2 (farm-b) died" in str(error)
            assert "see logs/rank.log" in str(error)
            assert f"receive of {4 * count} bytes of float32 from rank 2 (farm-b), tag 0" in str(error)
            assert "Nothing of it has arrived." in str(error)
        with pytest.raises(CollectiveError, match=r"broke in an earlier op.*rank 2"):
            all_reduce(group[0])
        with pytest.raises(CollectiveError, match=r"broke in an earlier op.*rank 2"):
            send(group[0], 1, room(1))


def test_death_in_the_middle_of_a_long_message_says_how_far_it_came() -> None:
    with engines(HOSTS[:2]) as group:
        request = receive(group[1], 0, room(50_000_000))
        send(group[0], 1, np.ones(50_000_000, np.float32))
        deadline = time.monotonic() + AT_ONCE_S
        while not request.moved and time.monotonic() < deadline:
            time.sleep(0.001)
        die(group[0])
        with pytest.raises(PeerLost, match=r"rank 0 \(farm-a\) died.*[1-9]\d* of 200000000 bytes have arrived"):
            wait(group[1], request)


def test_a_send_to_a_dead_peer() -> None:
    with engines(HOSTS[:2]) as group:
        die(group[1])
        with pytest.raises(PeerLost, match=r"send of 40000000 bytes .* to rank 1 \(farm-a\), tag 0.*died"):
            wait(group[0], send(group[0], 1, room(10_000_000)))


def test_who_waits_for_another_rank_learns_of_a_death_too() -> None:
    """Rank 0 waits for rank 1, which waits for rank 2, which dies."""
    with engines(HOSTS) as group:
        threading.Timer(0.1, die, [group[2]]).start()
        errors = errors_of(2, lambda rank: wait(group[rank], receive(group[rank], rank + 1, room(1))))
        assert all(isinstance(error, PeerLost) and error.culprit == 2 for error in errors), errors


def test_a_collective_that_fails_takes_messages_with_it_and_the_other_way_round() -> None:
    with engines(HOSTS) as group:
        request = receive(group[0], 1, room(1))
        threading.Timer(0.1, die, [group[2]]).start()
        errors = errors_of(2, lambda rank: all_reduce(group[rank]))
        with pytest.raises(PeerLost, match="rank 2"):
            wait(group[0], request)
        assert all(isinstance(error, PeerLost) and error.culprit == 2 for error in errors), errors
    with engines(HOSTS) as group:

        def either(rank: int) -> None:
            if rank == 0:
                all_reduce(group[0])  # of which the others never hear
            else:
                wait(group[rank], receive(group[rank], 2, room(1)), timeout_s=0.5)

        errors = errors_of(2, either)
        assert "rank 2 (farm-b)" in str(errors[0])
        assert isinstance(errors[1], OpTimeout)


def test_a_break_that_nobody_waited_for_keeps_its_kind() -> None:
    """The progress thread sees the death; what is started next must say PeerLost, on which the launcher restarts."""
    with engines(HOSTS[:2]) as group:
        request = receive(group[0], 1, room(1))
        die(group[1])
        deadline = time.monotonic() + AT_ONCE_S
        while not request.done and time.monotonic() < deadline:
            time.sleep(0.001)
        with pytest.raises(PeerLost, match=r"broke in an earlier op.*rank 1 \(farm-a\) died"):
            send(group[0], 1, room(1))
        with pytest.raises(PeerLost, match=r"broke in an earlier op.*rank 1 \(farm-a\) died"):
            all_reduce(group[0])


def test_from_any_source_when_one_dies_and_when_all_leave() -> None:
    with engines(HOSTS) as group:
        request = receive(group[0], None, room(1))
        group[1].close()
        die(group[2])
        with pytest.raises(PeerLost, match=r"from any rank, tag 0: rank 2 .* died"):
            wait(group[0], request)
    with engines(HOSTS) as group:
        request, value = receive(group[0], None, room(1)), room(1)
        group[1].close()
        send(group[2], 0, value + 4)
        wait(group[0], request)
        assert request.peer == 2
        request = receive(group[0], None, value)
        group[2].close()
        with pytest.raises(GroupClosed, match="has left the group"):
            wait(group[0], request)


def test_one_who_leaves_fails_only_what_needs_him() -> None:
    with engines(HOSTS) as group:
        lost, value = receive(group[0], 1, room(1)), room(1)
        wait(group[1], send(group[1], 0, value + 2, tag=9))
        group[1].close()
        with pytest.raises(GroupClosed, match=r"rank 1 \(farm-a\) has left the group"):
            wait(group[0], lost)
        wait(group[0], receive(group[0], 1, value, tag=9))  # had come before
        assert value[0] == 1
        with pytest.raises(GroupClosed, match=r"rank 1 \(farm-a\) has left the group"):
            wait(group[0], receive(group[0], 1, value))
        with pytest.raises(GroupClosed, match=r"rank 1 \(farm-a\) has left the group"):
            wait(group[0], send(group[0], 1, value))
        wait(group[2], send(group[2], 0, value + 4))
        wait(group[0], receive(group[0], 2, value))
        assert value[0] == 5


def test_what_was_sent_before_leaving_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the window goes out unasked, more than the receiver's kernel takes at once; then the sender leaves."""
    monkeypatch.setattr(messenger, "LINGER_S", 0.05)
    length = 64 * 1024
    count = WINDOW_BYTES // length - 4
    with engines(HOSTS[:2]) as group:
        for number in range(count):
            wait(group[0], send(group[0], 1, np.full(length // 4, number, np.float32)))
            wait(group[1], send(group[1], 0, room(1)))  # which rank 0 never reads
        group[0].close()
        for number in range(count):
            value = room(length // 4)
            wait(group[1], receive(group[1], 0, value))
            assert (value == number).all()


def test_a_peer_that_has_left_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """What it was sent back for what it sent, it needs no more."""
    with engines(HOSTS[:2]) as group:
        group[0].close()
        link = group[1].messages._links[0]
        for _ in range(2):  # the first makes the peer's kernel refuse, the second finds that out
            with contextlib.suppress(OSError):
                link.connection.send(bytes(32))
            time.sleep(0.1)
        link.used = True
        began = time.monotonic()
        with caplog.at_level(logging.WARNING):
            group[1].close()
        assert time.monotonic() - began < messenger.LINGER_S
        assert "has not taken" not in caplog.text


def test_a_receiver_that_does_not_read_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(messenger, "LINGER_S", 0.1)
    with engines(HOSTS[:2]) as group:
        link = group[0].messages._links[1]
        link.used = True
        while link.connection.send(bytes(1 << 20)) == 1 << 20:
            pass
        with caplog.at_level(logging.WARNING):
            group[0].close()
        assert "rank 1 (farm-a) has not taken" in caplog.text


def test_a_timeout_names_peer_tag_bytes_and_what_has_arrived() -> None:
    with engines(HOSTS, log="logs/rank.log") as group:
        link = group[1].messages._links[0]
        link.connection.setblocking(True)
        link.connection.sendall(pack(Header(EAGER, 0, 0, 0, 3, 400, 0)) + bytes(100))
        with pytest.raises(OpTimeout) as caught:
            wait(group[0], receive(group[0], 1, room(100), tag=3), timeout_s=0.3)
        said = str(caught.value)
        assert "rank 0 (farm-a), receive of 400 bytes of float32 from rank 1 (farm-a), tag 3" in said
        assert "no progress for 0.3 s. 100 of 400 bytes have arrived." in said
        assert said.endswith("see logs/rank.log")
        with pytest.raises(OpTimeout, match=r"rank 0 .*gave up"):
            wait(group[2], receive(group[2], 1, room(1)))
    words = r"send of 4000000 bytes.* to rank 1 .*tag 0.*It has sent nothing"
    with engines(HOSTS) as group, pytest.raises(OpTimeout, match=words):
        wait(group[0], send(group[0], 1, room(1_000_000)), timeout_s=0.2)


def test_bytes_of_a_message_that_began_before_its_receive_are_progress() -> None:
    with engines(HOSTS[:2]) as group:
        link = group[1].messages._links[0]
        link.connection.setblocking(True)
        link.connection.sendall(pack(Header(EAGER, 0, 0, 0, 3, 400, 0)) + bytes(100))
        other, deadline = receive(group[0], 1, room(1), tag=9), time.monotonic() + 100
        while group[0].messages._links[1]._payload is None:  # what has come so far has been read, for nobody yet
            assert not group[0].messages.test(other)
            assert time.monotonic() < deadline
        value = room(100)
        request = receive(group[0], 1, value, tag=3)

        def go_on() -> None:
            for _ in range(3):
                time.sleep(0.6)
                link.connection.sendall(bytes(100))

        sender = threading.Thread(target=go_on)
        sender.start()
        wait(group[0], request, timeout_s=1.5)
        sender.join()
        assert (value == 0).all()


def test_waiting_is_attributed_to_who_was_waited_for() -> None:
    with engines(HOSTS) as group:
        threading.Timer(0.4, lambda: send(group[2], 0, room(1))).start()
        wait(group[0], receive(group[0], 2, room(1)))
        waits = group[0].waits()
        assert waits["rank 2 (farm-b)"] > 0.3
        assert waits.get("rank 1 (farm-a)", 0.0) < 0.1


def test_closing_ends_what_is_under_way_and_takes_nothing_new() -> None:
    with engines(HOSTS[:2]) as group:
        pending = [receive(group[0], 1, room(1)), send(group[0], 1, room(1_000_000))]
        waiting = threading.Thread(target=lambda: group[0].messages.wait(pending[0], 100.0))
        waiting.start()
        time.sleep(0.05)
        group[0].close()
        waiting.join(AT_ONCE_S)
        assert not waiting.is_alive()
        for request in pending:
            with pytest.raises(GroupClosed, match=r"closed during a (receive|send) of"):
                wait(group[0], request)
        with pytest.raises(GroupClosed, match="was destroyed"):
            send(group[0], 1, room(1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda engine: send(engine, 0, room(1)), "rank 0 of 2 cannot exchange messages with itself"),
        (lambda engine: send(engine, 2, room(1)), "rank 0 of 2 cannot exchange messages with rank 2"),
        (lambda engine: receive(engine, -1, room(1)), "cannot exchange messages with rank -1"),
        (lambda engine: send(engine, 1, room(1), -1), f"tag is -1; wanted 0 to {MAX_TAG}"),
        (lambda engine: receive(engine, 1, room(1), MAX_TAG + 1), "wanted 0 to"),
    ],
)
def test_mistakes_leave_the_group_whole(call: Callable[[Engine], Request], words: str) -> None:
    with engines(HOSTS[:2]) as group:
        with pytest.raises(UsageError, match=words):
            call(group[0])
        on_all(2, lambda rank: all_reduce(group[rank]))
    with engines(["alone"]) as (one,), pytest.raises(UsageError, match="alone in group test"):
        receive(one, None, room(1))


FORGED = {
    "another generation": Header(EAGER, 0, 1, 0, 0, 4, 0),
    "no such kind": Header(9, 0, 0, 0, 0, 4, 0),
    "too long to come at once": Header(EAGER, 0, 0, 0, 0, EAGER_BYTES + 1, 0),
    "a negative tag": Header(ANNOUNCE, 0, 0, 0, -5, 4, 1),
    "ready for nothing": Header(READY, 0, 0, 0, 0, 0, 3),
    "data of nothing": Header(DATA, 0, 0, 0, 0, 4, 3),
    "credit that was not due": Header(CREDIT, 0, 0, 1, 0, 0, 0),
}


@pytest.mark.parametrize("header", FORGED.values(), ids=FORGED.keys())
def test_frames_that_no_correct_peer_sends(header: Header) -> None:
    with engines(HOSTS[:2]) as group:
        link = group[1].messages._links[0]
        link.connection.send(pack(header) + bytes(100))
        with pytest.raises(ProtocolError, match=r"rank 1 \(farm-a\) sent a message frame that does not belong here"):
            wait(group[0], receive(group[0], 1, room(1), tag=1))


def test_more_data_than_was_announced_is_refused() -> None:
    with engines(HOSTS[:2]) as group:
        value = room(20)
        request = receive(group[0], 1, value[:10])
        link = group[1].messages._links[0]
        link.connection.send(
            pack(Header(ANNOUNCE, 0, 0, 0, 0, 40, 1)) + pack(Header(DATA, 0, 0, 0, 0, 41, 1)) + b"x" * 41
        )
        with pytest.raises(ProtocolError, match="does not belong here"):
            wait(group[0], request)
        assert (value == -1).all()


def test_more_unasked_than_the_window_is_refused() -> None:
    with engines(HOSTS[:2]) as group:
        link = group[1].messages._links[0]
        link.connection.setblocking(True)
        frame = pack(Header(EAGER, 0, 0, 0, 0, EAGER_BYTES, 0)) + bytes(EAGER_BYTES)
        request = receive(group[0], 1, room(1), tag=1)
        writer = threading.Thread(target=lambda: [errors_of(1, lambda _: link.connection.sendall(frame * 20))])
        writer.start()
        with pytest.raises(ProtocolError, match="does not belong here"):
            wait(group[0], request)
        writer.join(AT_ONCE_S)


def test_random_bytes_end_the_group_and_nothing_else() -> None:
    draw = random.Random(5)
    for _ in range(12):
        with engines(HOSTS[:2]) as group:
            link = group[1].messages._links[0]
            value = room(4)
            noise = draw.randbytes(HEADER_BYTES * 20)
            if draw.random() < 0.5:  # right kind and generation, the rest is noise
                noise = b"".join(
                    struct.pack("<BBH", draw.randint(1, 5), 0, 0) + draw.randbytes(HEADER_BYTES - 4) for _ in range(20)
                )
            link.connection.send(noise)
            with pytest.raises(CollectiveError):
                wait(group[0], receive(group[0], 1, value))
            assert (value == -1).all()


def test_a_process_that_ends_with_an_error_says_which() -> None:
    with engines(HOSTS[:2]) as group:
        request = receive(group[0], 1, room(1))
        try:
            raise ZeroDivisionError("in the user's code")
        except ZeroDivisionError:
            group[1].leave()
        with pytest.raises(CollectiveError, match=r"rank 1 ended with ZeroDivisionError: in the user's code"):
            wait(group[0], request)
