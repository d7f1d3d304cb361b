"""Memory that ranks of one host share: the same bits as over sockets, and nothing left behind however they end."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from collectives.engine import reference
from collectives.engine.compiled.table import ARENA_BYTES
from collectives.options import Options
from collectives.schedule.op import OpSpec
from collectives.transport import shared_memory
from collectives.transport.rendezvous import meet
from tests.collectives.engine.cases import buffers, specs
from tests.collectives.engine.group import MemoryStore, engines, on_all
from tests.collectives.engine.test_reference import COLLECTIVES, layouts
from tests.paths import REPOSITORY

SMALL = {"slice_bytes": 1024, "window_bytes": 8192}
SHAPES = {
    "one host": ["a"] * 5,
    "two hosts": ["a", "a", "a", "b", "b", "b"],
    "interleaved": ["a", "b", "a", "c", "b", "a"],
}


@pytest.mark.parametrize("hosts", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("shares_memory", [True, False])
def test_agrees_with_the_reference_op_after_op(hosts: list[str], shares_memory: bool) -> None:
    """Ops follow each other without a pause and in all orders, so an arena's parts are written again at once."""
    rng, size = np.random.default_rng(3), len(hosts)
    cases = []
    for number in range(60):
        collective = str(rng.choice(COLLECTIVES)) if number % 3 else "all_reduce"
        all_specs = specs(rng, collective, str(rng.choice(["float32", "bfloat16"])), "sum", 9000, size)
        parts = buffers(rng, all_specs)
        wanted = [target.copy() for target in parts.targets]
        reference.run([layout.table for layout in layouts(all_specs, hosts)], parts.sources, wanted)
        cases.append((all_specs, parts, wanted))
    with engines(hosts, shared_memory=shares_memory, **SMALL) as group:
        assert all(
            bool(engine._shared.arenas) == shares_memory or hosts.count(hosts[engine.rank]) == 1 for engine in group
        )

        def drive(rank: int) -> None:
            for all_specs, parts, _ in cases:
                group[rank].run(all_specs[rank], parts.sources[rank].ctypes.data, parts.targets[rank].ctypes.data)

        on_all(size, drive)
    for all_specs, parts, wanted in cases:
        for rank in range(size):
            np.testing.assert_array_equal(parts.targets[rank], wanted[rank], f"rank {rank}: {all_specs[rank]}")


def test_payloads_of_near_ranks_do_not_travel() -> None:
    with engines(["a", "a", "a"]) as group:
        value = [np.ones(1_000_000, np.float32) for _ in group]
        spec = OpSpec("all_reduce", "float32", "sum", None, (1_000_000,))
        on_all(3, lambda rank: group[rank].run(spec, value[rank].ctypes.data, value[rank].ctypes.data))
        assert all((each == 3).all() for each in value)
        assert all(engine.counters.bytes_sent < 100_000 for engine in group)


def shared_by(hosts: list[int]) -> list[shared_memory.SharedMemory]:
    store, size = MemoryStore(), len(hosts)
    all_done = threading.Barrier(size)

    def share(rank: int) -> shared_memory.SharedMemory:
        with meet(store, rank, size, "test", 0, Options(host=str(hosts[rank])), 100.0) as meeting:
            meeting.connect()
            try:
                return shared_memory.share(meeting, hosts, ARENA_BYTES)
            finally:
                all_done.wait(100)  # a connection that closes without a goodbye is a death to whoever still forms
                meeting.connections.close()

    return on_all(size, share)


def test_what_one_rank_writes_the_others_read() -> None:
    shared = shared_by([0, 0, 1, 1, 2])
    assert [sorted(each.arenas) for each in shared] == [[0, 1], [0, 1], [2, 3], [2, 3], []]
    assert all(each.hosts == {0, 1} for each in shared)
    ctypes.memmove(shared[0].arenas[0] + ARENA_BYTES - 8, b"12345678", 8)
    assert ctypes.string_at(shared[1].arenas[0] + ARENA_BYTES - 8, 8) == b"12345678"
    for each in shared:
        each.close()
    assert "narrowgauge-" not in Path("/proc/self/maps").read_text()


def test_a_host_without_memory_to_share_goes_by_sockets_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(name: str, flags: int) -> int:
        if name == "narrowgauge-1":
            raise OSError(28, "No space left on device")
        return create(name, flags)

    create = os.memfd_create
    monkeypatch.setattr(os, "memfd_create", none_left)
    with caplog.at_level(logging.WARNING), engines(["a", "a", "b", "b"], **SMALL) as group:
        assert [sorted(engine._shared.arenas) for engine in group] == [[], [], [2, 3], [2, 3]]
        value = [np.full(5000, rank + 1.0, np.float32) for rank in range(4)]
        spec = OpSpec("all_reduce", "float32", "sum", None, (5000,))
        on_all(4, lambda rank: group[rank].run(spec, value[rank].ctypes.data, value[rank].ctypes.data))
    assert all((each == 10).all() for each in value)
    assert "slices go by sockets" in caplog.text
    assert "rank 1: no arena can be made: No space left on device" in caplog.text


WRONG: dict[str, tuple[Callable[[dict[str, object]], dict[str, object]], str]] = {
    "another secret": (lambda said: {**said, "secret": "00" * 32}, "is not rank 1's arena; are they in different"),
    "another file": (lambda said: {**said, "fd": os.open("/dev/null", os.O_RDONLY)}, "is not rank 1's arena"),
    "another user's process": (lambda said: {**said, "pid": 1}, "belongs to another user|is not rank 1's|cannot be op"),
    "a path": (lambda said: {**said, "fd": "../../../etc/passwd"}, "did not say where its arena is"),
    "no number": (lambda said: {**said, "pid": True}, "did not say where its arena is"),
    "nothing": (lambda said: {}, "did not say where its arena is"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_what_is_not_a_peers_arena_is_not_opened(
    change: Callable[[dict[str, object]], dict[str, object]], words: str,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In containers /proc may show another process under a peer's number."""
    create = shared_memory._create

    def wrongly(shared: shared_memory.SharedMemory, rank: int) -> dict[str, object]:
        return change(create(shared, rank)) if rank == 1 else create(shared, rank)

    monkeypatch.setattr(shared_memory, "_create", wrongly)
    assert [each.arenas for each in shared_by([0, 0])] == [{}, {}]
    assert re.search(words, caplog.text)


def test_an_arena_cannot_change_its_size_under_its_readers() -> None:
    shared = shared_by([0, 0])
    for each in shared:
        assert each._fd is not None
        with pytest.raises(PermissionError):
            os.ftruncate(each._fd, 4096)
        each.close()


RANK = """
import sys
import numpy as np
from torch.distributed import FileStore
from collectives.schedule.op import OpSpec
from collectives.engine.runner import connect
from collectives.options import Options

engine = connect(FileStore(sys.argv[2], 2), int(sys.argv[1]), 2, "test", 600.0, Options(host="box"))
value = np.ones(1_000_000, np.float32)
spec = OpSpec("all_reduce", "float32", "max", None, (1_000_000,))
assert len(engine._shared.arenas) == 2
while True:
    engine.run(spec, value.ctypes.data, value.ctypes.data)
    print("op", flush=True)
"""


def test_nothing_is_left_behind_when_a_rank_is_killed(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in ranks:
        assert process.stdout is not None
        assert process.stdout.readline() == "op\n" or pytest.fail(process.communicate()[1])
    ranks[0].send_signal(signal.SIGKILL)
    _, said = ranks[1].communicate(timeout=200)
    ranks[0].communicate()
    assert "PeerLost" in said
    assert not {name for name in set(os.listdir("/dev/shm")) - before if "narrowgauge" in name}
