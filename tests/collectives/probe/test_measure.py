"""Measuring between threads: real connections over loopback, several hosts and ranks, and ranks that fail."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest

from collectives.errors import RendezvousError
from collectives.probe import lead
from collectives.probe.lead import BLOCK_BYTES, NOTSENT_LOWAT, Lead
from collectives.probe.measure import measure
from collectives.topology import Topology
from collectives.transport import tcp
from collectives.transport.tcp import receive_frame, send_frame
from tests.collectives.engine.group import AT_ONCE_S, MemoryStore, connect_all, errors_of, on_all

measuring = sys.modules["collectives.probe.measure"]
Connections = Mapping[int, socket.socket]


@contextmanager
def meshes(hosts: Sequence[str]) -> Iterator[list[Connections]]:
    """Each rank's connections to the others, as a group has them."""
    store = MemoryStore()

    formed = on_all(len(hosts), lambda rank: connect_all(store, rank, len(hosts), hosts[rank]))
    try:
        yield [dict(each.data) for each in formed]
    finally:
        for each in formed:
            each.close()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is measured well enough for these tests in no time."""
    for name in ("FLOW_S", "MIN_FLOW_S", "AGAIN_S", "FAN_S"):
        monkeypatch.setattr(measuring, name, 0.01)
    monkeypatch.setattr(measuring, "ROUND_TRIPS", 0)
    monkeypatch.setattr(lead, "MEMORY_BYTES", 1024 * 1024)


def measured(hosts: Sequence[str], connections: Sequence[Connections]) -> list[Topology]:
    return on_all(len(hosts), lambda rank: measure(rank, hosts, [*connections[rank].items()], 300.0))


HOSTS = {
    "one rank each": ["a", "b", "c", "d", "e"],
    "two hosts": ["a", "b"],
    "several ranks on each": ["a", "b", "b", "a", "c", "c", "c"],
    "one host": ["a", "a", "a"],
    "one rank": ["a"],
}


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=list(HOSTS))
def test_all_ranks_get_the_same_and_their_connections_back(hosts: list[str]) -> None:
    with meshes(hosts) as connections:
        modes = [2.5, None, 7.0]
        for rank, own in enumerate(connections):
            for peer, connection in own.items():
                connection.settimeout(modes[(rank + peer) % 3])
                connection.setsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT, 4096 * (1 + rank))
        topologies = measured(hosts, connections)
        assert len({topology.to_json() for topology in topologies}) == 1
        (topology,) = {*topologies}
        plain = Topology.from_hosts(hosts)
        assert [(host.name, host.ranks) for host in topology.hosts] == [(host.name, host.ranks) for host in plain.hosts]
        for host in topology.hosts:
            assert min(host.memory_bytes_per_s, host.up_bytes_per_s, host.down_bytes_per_s) > 0
        for rank, own in enumerate(connections):
            for peer, connection in own.items():
                assert connection.gettimeout() == modes[(rank + peer) % 3]
                assert connection.getsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT) == 4096 * (1 + rank)
        check_idle_and_usable(connections)


@pytest.mark.measured
def test_memory_and_loopback_are_as_fast_as_any_machines() -> None:
    with meshes("abbc") as connections:
        for host in measured("abbc", connections)[0].hosts:
            assert host.memory_bytes_per_s > 1e8
            assert min(host.up_bytes_per_s, host.down_bytes_per_s) > 1e7


def check_idle_and_usable(connections: Sequence[Connections]) -> None:
    """Nothing waits to be read, and what is written comes out at the other end."""
    for connection in [each for own in connections for each in own.values()]:
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        connection.setblocking(True)
    for rank, own in enumerate(connections):
        for peer, connection in own.items():
            send_frame(connection, f"{rank} to {peer}".encode())
    for rank, own in enumerate(connections):
        for peer, connection in own.items():
            assert receive_frame(connection, 100) == f"{peer} to {rank}".encode()


def test_it_can_be_done_again_on_the_same_connections() -> None:
    with meshes("abc") as connections:
        measured("abc", connections)
        measured("abc", connections)
        check_idle_and_usable(connections)


def test_several_connections_to_a_host_are_measured_at_once() -> None:
    """As there are where a host has several interfaces: each carries a part of every flow."""
    store = MemoryStore()
    formed = on_all(2, lambda rank: connect_all(store, rank, 2, "ab"[rank], streams=3))
    try:
        topologies = on_all(2, lambda rank: measure(rank, "ab", formed[rank].data, 20.0))
        assert topologies[0] == topologies[1]
        for each in formed:
            assert len(each.data) == 3
            assert all(tcp.sent_so_far(connection)[0] >= BLOCK_BYTES for _, connection in each.data)
        for stream in range(3):
            check_idle_and_usable([{1 - rank: formed[rank].data[stream][1]} for rank in range(2)])
    finally:
        for each in formed:
            each.close()


# ---- ranks that fail -----------------------------------------------------------------------------------------------


def failing(hosts: Sequence[str], instead: dict[int, Callable[[Connections], object]], timeout_s: float) -> list[str]:
    """Measure where some ranks do something else; what each of the others raised, all within the timeout."""
    with meshes(hosts) as connections:
        started = time.monotonic()

        def act(rank: int) -> object:
            try:
                return instead.get(rank, lambda own: measure(rank, hosts, [*own.items()], timeout_s))(connections[rank])
            except RendezvousError:
                assert time.monotonic() - started < timeout_s + AT_ONCE_S
                for connection in connections[rank].values():  # as its group would
                    connection.close()
                raise

        errors = errors_of(len(hosts), act)
    raised = [error for rank, error in enumerate(errors) if rank not in instead]
    assert all(isinstance(error, RendezvousError) for error in raised), raised
    assert [error for rank, error in enumerate(errors) if rank in instead] == [None] * len(instead)
    return [str(error) for error in raised]


def close_all(own: Connections) -> None:
    for connection in own.values():
        connection.close()


@pytest.mark.parametrize("rank", [1, 3])
def test_a_rank_that_is_gone_is_named_at_once(rank: int) -> None:
    started = time.monotonic()
    told = failing("abcd", {rank: close_all}, 300.0)
    assert time.monotonic() - started < AT_ONCE_S
    assert {*told} == {f"measuring links: rank {rank} ({'abcd'[rank]}) does not answer: {why(told[0])}"}


def why(told: str) -> str:
    """How the kernel tells of a closed connection depends on who wrote last."""
    (found,) = [text for text in ("peer closed", "reset by peer", "Broken pipe") if text in told]
    return told[told.index("does not answer: ") + len("does not answer: ") :] if found else ""


def test_two_that_are_gone_are_both_named() -> None:
    told = failing("abcde", {2: close_all, 3: close_all}, 20.0)
    assert len({*told}) == 1
    assert "rank 2 (c) does not answer" in told[0]
    assert "rank 3 (d) does not answer" in told[0]
    assert "rank 1" not in told[0]
    assert "rank 4" not in told[0]


def test_a_silent_rank_is_named_within_the_timeout() -> None:
    told = failing("abcd", {2: lambda own: None}, 2.0)
    assert {*told} == {"measuring links: rank 2 (c) does not answer: timed out"}


def test_one_silent_and_one_gone() -> None:
    told = failing("abcde", {1: close_all, 3: lambda own: None}, 2.0)
    assert len({*told}) == 1
    assert "rank 1 (b) does not answer" in told[0]
    assert "rank 3 (d) does not answer: timed out" in told[0]


def test_a_silent_conductor_is_named_by_all() -> None:
    told = failing("abbc", {0: lambda own: None}, 1.0)
    assert {*told} == {"measuring links: rank 0 (a) does not answer: timed out"}


def test_a_conductor_that_is_gone_is_named_by_all() -> None:
    told = failing("abbc", {0: close_all}, 20.0)
    assert {text[:44] for text in told} == {"measuring links: rank 0 (a) does not answer:"}
    assert all(map(why, told))


def test_a_lead_that_stops_in_the_middle_of_a_flow_is_named() -> None:
    """It takes part in everything but its third order, in which it sends a part of a block and goes."""

    def act(own: Connections) -> None:
        names = ["rank 0 (a)", "rank 1 (b)", "rank 2 (c)"]
        to = {0: own[0], 2: own[2]}
        for each in to.values():
            each.settimeout(100)
        for _ in range(2):
            answer = Lead(1, names, to, time.monotonic() + 100).carry_out(json.loads(receive_frame(own[0], 9999)))
            send_frame(own[0], json.dumps(answer).encode())
        receive_frame(own[0], 9999)
        for each in to.values():
            each.sendall(bytes(BLOCK_BYTES // 3))
        close_all(own)

    told = failing("abc", {1: act}, 20.0)
    assert {text[:44] for text in told} == {"measuring links: rank 1 (b) does not answer:"}


def test_a_connection_between_two_others_that_is_cut_is_told_by_both() -> None:
    with meshes("abcd") as connections:
        connections[1][3].shutdown(socket.SHUT_RDWR)
        started = time.monotonic()
        errors = errors_of(4, lambda rank: measure(rank, "abcd", [*connections[rank].items()], 300.0))
        assert time.monotonic() - started < AT_ONCE_S
    assert len({str(error) for error in errors}) == 1
    assert "rank 1 (b) lost rank 3 (d): " in str(errors[0])
    assert "rank 3 (d) lost rank 1 (b): the connection was closed" in str(errors[0])


def test_an_answer_that_is_none_is_told() -> None:
    def babble(own: Connections) -> None:
        receive_frame(own[0], 9999)
        own[0].sendall(b"." * 12 + b"\x0a\0\0\0GET / HTTP")
        time.sleep(0.2)

    with meshes("ab") as connections:
        errors = errors_of(
            2, lambda rank: measure(0, "ab", [*connections[0].items()], 5.0) if rank == 0 else babble(connections[1])
        )
    assert str(errors[0]) == (
        "measuring links: rank 1 (b) does not answer: got b'GET / HTTP' where a message was expected"
    )


def test_a_mistake_of_the_conductor_reaches_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: object) -> Topology:
        raise ZeroDivisionError("a test")

    monkeypatch.setattr(measuring, "infer", wrong)
    with meshes("abb") as connections:
        errors = errors_of(3, lambda rank: measure(rank, "abb", [*connections[rank].items()], 20.0))
    assert isinstance(errors[0], ZeroDivisionError)
    assert {str(error) for error in errors[1:]} == {"rank 0 (a): ZeroDivisionError('a test')"}


# ---- what a flow tells ---------------------------------------------------------------------------------------------


def rate_of(send: Callable[[socket.socket], object], seconds: float) -> float:
    """What a lead makes of what `send` writes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=send, args=(theirs,))
        sender.start()
        try:
            return Lead(0, ["a", "b"], {1: ours}, time.monotonic() + 100)._receive(ours, seconds)
        finally:
            sender.join()


@pytest.mark.measured
def test_what_a_shaper_lets_through_at_once_does_not_count() -> None:
    def burst_then_steady(connection: socket.socket) -> None:
        connection.sendall(bytes(20 * BLOCK_BYTES))
        for _ in range(10):
            time.sleep(0.05)
            connection.sendall(bytes(BLOCK_BYTES))
        connection.sendall(b"\1" + bytes(BLOCK_BYTES - 1))

    assert rate_of(burst_then_steady, 0.5) < 1.5 * BLOCK_BYTES / 0.05  # 3.0 times that if all counted


def test_a_flow_that_was_here_before_it_was_read_is_not_taken_for_fast() -> None:
    def at_once(connection: socket.socket) -> None:
        connection.sendall(bytes(2 * BLOCK_BYTES) + b"\1" + bytes(BLOCK_BYTES - 1))

    assert rate_of(at_once, 0.5) <= 3 * BLOCK_BYTES / 0.5
