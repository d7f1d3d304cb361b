"""What goes wrong, made to go wrong: each error must come soon, on every rank, and say who."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import resource
import socket
import stat
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from collectives.engine import runner
from collectives.engine.compiled.connections import HEADER
from collectives.engine.hangs.diagnosis import Whereabouts
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
from collectives.options import Options
from collectives.schedule.op import OpSpec
from collectives.transport import control, tcp
from tests.collectives.engine.group import AT_ONCE_S, MemoryStore, engines, errors_of, on_all

HOSTS = ["farm-a", "farm-a", "farm-b"]


def all_reduce(engine: Engine, count: int = 100_000, reduction: str = "sum", timeout_s: float | None = None) -> None:
    value = np.ones(count, np.float32)
    at = value.ctypes.data
    engine.run(OpSpec("all_reduce", "float32", reduction, None, (count,)), at, at, timeout_s)


def die(engine: Engine) -> None:
    """What the kernel does for a killed process: every socket closes, no last words."""
    connections = [*engine._connections.control.values(), *engine._connections.streams()]
    engine._control._control.clear()
    for connection in connections:
        control.shut(connection)


def test_a_dead_rank_is_named_on_all_others_with_its_host_and_log() -> None:
    with engines(HOSTS, log="logs/rank.log") as group:
        on_all(3, lambda rank: all_reduce(group[rank]))
        started = time.monotonic()
        errors = errors_of(3, lambda rank: die(group[2]) if rank == 2 else all_reduce(group[rank]))
        assert time.monotonic() - started < AT_ONCE_S
        for error in errors[:2]:
            assert isinstance(error, PeerLost), error
            assert error.culprit == 2
            assert "rank 2 (farm-b) died" in str(error)
            assert "see logs/rank.log" in str(error)


def test_a_rank_that_dies_in_the_middle_of_a_large_op() -> None:
    """Slices are under way in both directions when the sockets close."""
    with engines(HOSTS) as group:
        threading.Timer(0.05, die, [group[1]]).start()

        def keep_going(rank: int) -> None:
            for _ in range(10_000):
                all_reduce(group[rank], 2_000_000)

        errors = errors_of(3, keep_going)
        for rank in (0, 2):
            assert isinstance(errors[rank], PeerLost), errors[rank]
            assert errors[rank].culprit == 1, str(errors[rank])


class Failing(socket.socket):
    """A control connection whose receive fails with an error of the kernel's."""

    def __init__(self, connection: socket.socket, error: OSError) -> None:
        super().__init__(fileno=connection.detach())
        self._error = error

    def recv(self, *arguments: object) -> bytes:
        raise self._error


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH])
def test_a_host_that_does_not_answer_is_named_on_all_others(number: int) -> None:
    """As the kernel reports it on the control connection, whose data streams say nothing: the cable is cut."""
    with engines(HOSTS, log="logs/rank.log") as group:
        connections = group[0]._connections.control
        connections[2] = Failing(connections[2], OSError(number, os.strerror(number)))
        group[2]._connections.control[0].sendall(b"x")  # wakes the loop of rank 0, as the kernel's error would
        errors = errors_of(3, lambda rank: None if rank == 2 else all_reduce(group[rank], timeout_s=10))
        for error in errors[:2]:
            assert isinstance(error, PeerLost), error
            assert error.culprit == 2
            assert f"rank 2 (farm-b) does not answer any more ({os.strerror(number)})" in str(error)
            assert "its host or the link to it is down; see logs/rank.log" in str(error)


@pytest.mark.parametrize("counts", [(100, None), (100, 200)], ids=["timeout", "mismatch"])
def test_a_diagnosis_that_fails_does_not_hide_the_error(counts: tuple[int, int | None]) -> None:
    def lost() -> Whereabouts:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    with engines(HOSTS[:2]) as group:
        for engine in group:
            assert engine._watch is not None
            engine._watch.whereabouts = lost
        errors = errors_of(
            2, lambda rank: all_reduce(group[rank], count, timeout_s=2) if (count := counts[rank]) else 0
        )
    wanted = OpTimeout if counts[1] is None else OpMismatch
    assert any(isinstance(error, wanted) for error in errors), errors
    assert all(error is None or isinstance(error, CollectiveError) for error in errors), errors


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (OSError(errno.ETIMEDOUT, "x"), False),
        (OSError(errno.EHOSTUNREACH, "x"), False),
        (OSError(errno.ENETUNREACH, "x"), False),
        (OSError(errno.ECONNRESET, "x"), True),
        (TimeoutError("timed out"), True),  # Python's own, after _PATIENCE_S
    ],
)
def test_only_the_kernel_says_that_a_host_does_not_answer(error: OSError, answers: bool) -> None:
    near, far = socket.socketpair()
    with Failing(near, error) as connection, far:
        channel = control.ControlChannel({4: connection})
        channel.read(4)
        assert channel.died == ({4} if answers else set())
        assert channel.unreachable == ({} if answers else {4: os.strerror(error.errno)})


def test_after_a_failure_the_group_stays_broken_and_says_why() -> None:
    with engines(HOSTS) as group:
        errors_of(3, lambda rank: die(group[2]) if rank == 2 else all_reduce(group[rank]))
        for rank in (0, 1):
            with pytest.raises(CollectiveError, match=r"broke in an earlier op.*rank 2"):
                all_reduce(group[rank])


def test_different_ops_at_the_same_place() -> None:
    with engines(HOSTS) as group:
        errors = errors_of(3, lambda rank: all_reduce(group[rank], 100 + (rank == 1)))
        assert all(isinstance(error, CollectiveError) for error in errors), errors
        mismatches = [error for error in errors if isinstance(error, OpMismatch)]
        assert mismatches
        assert "same collectives in the same order" in str(mismatches[0])
        assert any("all_reduce sum of 101 float32" in str(error) for error in errors)


def test_different_reductions_at_the_same_place() -> None:
    with engines(HOSTS) as group:
        errors = errors_of(3, lambda rank: all_reduce(group[rank], reduction="max" if rank == 2 else "sum"))
        assert [type(error) for error in errors] == [OpMismatch] * 3, errors
        assert any("all_reduce sum" in str(error) and "all_reduce max" in str(error) for error in errors), errors


def test_a_rank_that_does_not_come_is_named_after_the_timeout() -> None:
    with engines(HOSTS) as group:
        started = time.monotonic()
        errors = errors_of(3, lambda rank: None if rank == 1 else all_reduce(group[rank], timeout_s=0.5))
        assert 0.4 < time.monotonic() - started < AT_ONCE_S
        for error in (errors[0], errors[2]):
            assert isinstance(error, OpTimeout), error
            assert isinstance(error, TimeoutError)
            assert error.culprit == 1, error
            assert "rank 1 (farm-a)" in str(error), error
        texts = " ".join(map(str, errors))
        assert "nothing moved for 0.5 s" in texts
        assert "slice 0, on its way up" in texts


def test_a_rank_that_leaves_early_is_not_called_dead() -> None:
    with engines(HOSTS) as group:
        errors = errors_of(3, lambda rank: group[2].close() if rank == 2 else all_reduce(group[rank]))
        for error in errors[:2]:
            assert isinstance(error, CollectiveError), error
            assert "rank 2 (farm-b) has left the group" in str(error), error


def test_a_process_that_ends_by_an_exception_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    with engines(HOSTS) as group:

        def do(rank: int) -> None:
            if rank == 2:
                monkeypatch.setattr(sys, "last_value", ValueError("no data left"), raising=False)
                group[2].leave()
                die(group[2])
            else:
                all_reduce(group[rank])

        for error in errors_of(3, do)[:2]:
            assert isinstance(error, CollectiveError), error
            assert "ended with ValueError: no data left" in str(error), error
        monkeypatch.undo()


def test_close_interrupts_an_op_and_is_idempotent() -> None:
    with engines(HOSTS[:2]) as group:
        outcome: list[BaseException | None] = []
        value = np.ones(10, np.float32)
        spec = OpSpec("all_reduce", "float32", "sum", None, (10,))
        group[0].start(spec, value.ctypes.data, value.ctypes.data, outcome.append)
        group[0].start(spec, value.ctypes.data, value.ctypes.data, outcome.append)
        time.sleep(0.1)
        group[0].close()
        group[0].close()
        assert len(outcome) == 2
        assert all(isinstance(error, CollectiveError) for error in outcome)
        assert isinstance(outcome[0], GroupClosed)
        with pytest.raises(GroupClosed, match="was closed before"):
            all_reduce(group[0])


def test_usage_errors_do_not_break_the_group() -> None:
    with engines(HOSTS) as group:
        with pytest.raises(UsageError):
            group[0].run(OpSpec("broadcast", "float32", None, 7, (1,)), 0, 0)
        on_all(3, lambda rank: all_reduce(group[rank]))


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 9},
        {"tree": 4_000_000},
        {"slice": 4_000_000},
        {"direction": 7},
        {"length": 3},
    ],
)
def test_a_header_that_cannot_be_is_refused_and_shown(change: dict[str, int]) -> None:
    """Rank 0 speaks the protocol wrongly after a rightful handshake: rank 1 must not write a byte where it says."""
    with engines(["farm-a", "farm-b"]) as group:
        spec = OpSpec("all_reduce", "float32", "sum", None, (100,))
        layout = group[0]._tables.get(spec).layout
        header = np.zeros(1, HEADER)
        header["spec"] = layout.table.run[0]["spec"]
        header["length"] = 400
        for field, value in change.items():
            header[field] = value
        ((_, connection),) = group[0]._connections.data
        connection.sendall(header.tobytes())
        with pytest.raises(
            ProtocolError, match=r"rank 0 \(farm-a\) announced a slice that does not belong here: .* sizes"
        ):
            all_reduce(group[1], 100)


def test_noise_on_a_connection_is_refused() -> None:
    with engines(["farm-a", "farm-b"]) as group:
        ((_, connection),) = group[0]._connections.data
        connection.sendall(b"GET / HTTP/1.1\r\nHost: somebody-lost\r\n\r\n")
        with pytest.raises(CollectiveError, match=r"rank 0 \(farm-a\)"):
            all_reduce(group[1], 100, timeout_s=100)


def test_streams_have_no_time_limit_of_their_own_and_control_connections_do() -> None:
    """A peer that reads nothing for a while closes its window; only the group's timeout may end that."""
    with engines(HOSTS) as group:
        level, option = socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT
        assert {stream.getsockopt(level, option) for _, stream in group[0]._connections.data} == {0}
        connections = group[0]._connections.control.values()
        assert {connection.getsockopt(level, option) for connection in connections} == {tcp.USER_TIMEOUT_MS}


def test_all_to_all_counts_that_do_not_match_are_found_by_the_next_op() -> None:
    """Rank 0 sends rank 1 nothing, rank 1 expects three: it need not wait for the timeout once rank 0 has gone on."""
    counts = {0: (1, 0, 1, 0), 1: (0, 1, 3, 1)}

    def do(engine: Engine) -> None:
        source, target = np.ones(4, np.float32), np.ones(4, np.float32)
        spec = OpSpec("all_to_all", "float32", None, None, counts[engine.rank])
        engine.run(spec, source.ctypes.data, target.ctypes.data)
        all_reduce(engine)

    with engines(["a", "b"]) as group:
        started = time.monotonic()
        errors = errors_of(2, lambda rank: do(group[rank]))
        assert time.monotonic() - started < AT_ONCE_S
        assert isinstance(errors[1], OpMismatch), errors
        assert isinstance(errors[0], CollectiveError), errors


def test_a_dead_rank_is_named_in_a_process_with_many_files_open() -> None:
    """File descriptors above 1023, which select() does not take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip(f"this process may have no more than {hard} files open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    with contextlib.ExitStack() as files:
        for _ in range(1100):
            files.enter_context(open(os.devnull))
        with engines(HOSTS) as group:
            errors = errors_of(3, lambda rank: die(group[2]) if rank == 2 else all_reduce(group[rank]))
            assert [type(error) for error in errors[:2]] == [PeerLost, PeerLost]


def test_a_forked_child_keeps_no_socket_open_and_says_nothing() -> None:
    """The child outlives its parent's group, then ends; neither may be felt by the peers."""
    with engines(HOSTS) as group:
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            fds = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            sockets = [fd for fd in fds if os.path.exists(fd) and stat.S_ISSOCK(os.stat(fd).st_mode)]
            os.write(tell, b"1" if sockets else b"0")
            atexit._run_exitfuncs()
            os._exit(0)
        assert os.read(ready, 1) == b"0", "the child still holds a socket"
        os.waitpid(child, 0)
        on_all(3, lambda rank: all_reduce(group[rank]))


def test_an_interrupted_wait_ends_the_op_before_its_buffers_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A synchronous op that was queued behind another is interrupted while its peer has not come yet."""
    with engines(["a", "b"]) as group:
        first, second = np.ones(10, np.float32), np.ones(10, np.float32)
        spec = OpSpec("all_reduce", "float32", "sum", None, (10,))
        group[0].start(spec, first.ctypes.data, first.ctypes.data, lambda error: None)
        waits = []

        class Interrupted(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                waits.append(timeout)
                if len(waits) == 1:
                    raise KeyboardInterrupt
                return super().wait(timeout)

        monkeypatch.setattr("collectives.engine.op_queue.threading.Event", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            group[0].run(spec, second.ctypes.data, second.ctypes.data)
        monkeypatch.undo()
        second[:] = 7.0
        assert isinstance(errors_of(1, lambda _: all_reduce(group[1], 10))[0], CollectiveError)
        np.testing.assert_array_equal(second, np.full(10, 7.0, np.float32))


def own_sockets() -> set[str]:
    """Those that are open in this process, and the arenas."""
    names = set()
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            names.add(os.readlink(entry.path))
    return {name for name in names if name.startswith("socket:") or "narrowgauge" in name}


@pytest.mark.parametrize("wanting", ["socketpair", "eventfd"])
def test_an_engine_that_cannot_be_made_leaves_nothing(wanting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    if wanting == "eventfd":
        monkeypatch.setattr(os, "eventfd", none_left)
    else:
        monkeypatch.setattr(runner, "socket", types.SimpleNamespace(socketpair=none_left))
    before, store = own_sockets(), MemoryStore()
    errors = errors_of(2, lambda rank: runner.connect(store, rank, 2, "test", AT_ONCE_S, Options(host="farm-a")))
    assert all("too many open files" in str(error) for error in errors), errors
    assert own_sockets() <= before
    assert not [thread.name for thread in threading.enumerate() if "watch of group test" in thread.name]
    assert "memfd:narrowgauge" not in Path("/proc/self/maps").read_text()
