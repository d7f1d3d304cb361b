"""What a group knows of its links before it starts, and what it makes of it when they change."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collectives.engine.bootstrap import streams_for
from collectives.engine.monitor import link_monitor
from collectives.engine.runner import connect
from collectives.errors import PlanError, RendezvousError, UsageError
from collectives.options import Options
from collectives.schedule.op import OpSpec
from collectives.topology import Host, Topology
from collectives.transport import tcp
from tests.collectives.engine.group import MemoryStore, engines, errors_of, on_all

MBIT = 1e6 / 8


def test_streams_follow_the_bandwidth_delay_product() -> None:
    def farm(bytes_per_s: float, latency_s: float) -> Topology:
        return Topology(
            tuple(Host(n, (r,), bytes_per_s, bytes_per_s, latency_s=latency_s) for r, n in enumerate("abc"))
        )

    assert streams_for(farm(125e6, 100e-6), 4_000_000) == 1  # a switch
    assert streams_for(farm(125e6, 20e-3), 4_000_000) == 3  # 5 MB under way, twice, over 4 MB
    assert streams_for(farm(1.25e9, 100e-3), 4_000_000) == 16  # as many as there may be
    assert streams_for(Topology.from_hosts(["a", "a"]), 4_000_000) == 1


def test_a_topology_file_by_the_names_of_the_hosts(tmp_path: Path) -> None:
    """The ranks in the file are others than those here; the names count."""
    path = tmp_path / "farm.json"
    path.write_text(Topology((Host("b", (0,), 2e8, 2e8), Host("a", (1, 2), 1e8, 1e8), Host("c", (3,)))).to_json())
    with engines(["a", "b", "a"], topology=str(path)) as group:
        assert group[0].topology.hosts == (Host("a", (0, 2), 1e8, 1e8), Host("b", (1,), 2e8, 2e8))


WRONG = {
    "too few ranks": ([{"name": "x", "ranks": [0]}], "wanted the hosts a, b, or hosts with ranks 0 to 2"),
    "ranks of two hosts on one": ([{"name": "x", "ranks": [0, 1, 2]}], r"several hosts: rank 0 on a, rank 1 on b"),
    "a negative rate": ([{"name": "a", "ranks": [0], "up_bytes_per_s": -1}], r"hosts\[0\].up_bytes_per_s: got -1"),
}


@pytest.mark.parametrize(("hosts", "wanted"), WRONG.values(), ids=WRONG)
def test_a_topology_file_that_does_not_fit_is_refused(hosts: object, wanted: str, tmp_path: Path) -> None:
    path, store = tmp_path / "farm.json", MemoryStore(2.0)
    path.write_text(json.dumps({"hosts": hosts}))

    def join(rank: int) -> None:
        connect(store, rank, 3, "test", 5.0, Options(host="aba"[rank], topology=str(path)))

    for error in errors_of(3, join):
        assert isinstance(error, PlanError)
        assert str(path) in str(error)
        assert re.search(wanted, str(error))


def test_ranks_with_different_plans_are_told_both(tmp_path: Path) -> None:
    paths = []
    for rate in (1e8, 2e8):
        paths.append(tmp_path / f"{rate:g}.json")
        paths[-1].write_text(Topology((Host("a", (0,), rate, rate), Host("b", (1,), 1e8, 1e8))).to_json())
    store = MemoryStore()

    def join(rank: int) -> None:
        connect(store, rank, 2, "test", 5.0, Options(host="ab"[rank], topology=str(paths[rank])))

    for error in errors_of(2, join):
        assert isinstance(error, PlanError)
        # Who finds it second repeats what the first has said.
        first, second, third, _ = str(error).removeprefix("a rank could not join the group: ").splitlines()
        assert first == "rank 0 (a) and rank 1 (b) would plan from different links or slices:"
        assert second.startswith('  rank 0: {"name": "a"')
        assert '"up_bytes_per_s": 100000000.0' in second
        assert '"up_bytes_per_s": 200000000.0' in third


def test_emulated_links_are_paced_and_planned_with() -> None:
    """2 MB each way between two hosts at 80 Mbit/s take about 0.2 s; unpaced they would take a hundredth of it."""
    with engines(["a", "b"], emulate="80,400") as group:
        assert [host.up_bytes_per_s for host in group[0].topology.hosts] == [80 * MBIT, 400 * MBIT]
        assert group[0].topology.links[-1].bytes_per_s == 80 * MBIT
        value = [np.ones(500_000, np.float32) for _ in group]
        spec = OpSpec("all_reduce", "float32", "sum", None, (500_000,))
        started = time.perf_counter()
        on_all(2, lambda rank: group[rank].run(spec, value[rank].ctypes.data, value[rank].ctypes.data))
        assert time.perf_counter() - started > 0.1
        assert all((each == 2).all() for each in value)


@pytest.mark.measured
def test_emulated_links_are_not_slower_than_they_say() -> None:
    with engines(["a", "b"], emulate="80,400") as group:
        value = [np.ones(500_000, np.float32) for _ in group]
        spec = OpSpec("all_reduce", "float32", "sum", None, (500_000,))
        started = time.perf_counter()
        on_all(2, lambda rank: group[rank].run(spec, value[rank].ctypes.data, value[rank].ctypes.data))
        assert 0.1 < time.perf_counter() - started < 2


def test_emulated_rates_for_other_hosts_are_refused() -> None:
    store = MemoryStore(2.0)

    def join(rank: int) -> None:
        connect(store, rank, 2, "test", 5.0, Options(host="ab"[rank], emulate="1,2,3"))

    assert all("emulate gives the rates of 3 hosts; this group has 2: a, b" in str(e) for e in errors_of(2, join))
    with pytest.raises(UsageError, match="wanted Mbit/s of each host"):
        Options(emulate="1000,fast")


def test_all_ranks_plan_anew_at_the_same_op_by_given_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    """From some op on, the link of host d seems to have a quarter of its rate."""
    monkeypatch.setattr(link_monitor, "LOOK_S", 0.15)
    slowed = threading.Event()

    def given(topology: Topology, measured: Topology, traffic: object) -> Topology:
        host = measured.hosts[3]
        slow = replace(host, up_bytes_per_s=host.up_bytes_per_s / 4)
        return replace(measured, hosts=(*measured.hosts[:3], slow)) if slowed.is_set() else measured

    monkeypatch.setattr(link_monitor, "estimate_links", given)
    size, spec = 4, OpSpec("all_reduce", "float32", "sum", None, (500_000,))
    with engines(list("abcd"), emulate="400,400,400,400") as group:

        def drive(rank: int) -> list[int]:
            plans = []
            for _ in range(15):
                value = np.full(500_000, rank + 1.0, np.float32)
                group[rank].run(spec, value.ctypes.data, value.ctypes.data)
                assert (value == 10).all()
                plans.append(group[rank].plan("all_reduce", 2_000_000).fingerprint())
            return plans

        before = on_all(size, drive)
        slowed.set()
        after = on_all(size, drive)
        assert before == [[before[0][0]] * 15] * size
        assert after == [after[0]] * size
        assert len({*after[0]}) == 2
        assert group[0].topology.hosts[3].up_bytes_per_s == 100 * MBIT


@pytest.mark.measured
def test_all_ranks_plan_anew_at_the_same_op_when_a_link_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host d's way out is paced down to a quarter in mid-run. No op may be wrong, and no rank left behind."""
    monkeypatch.setattr(link_monitor, "LOOK_S", 0.15)
    size, spec = 4, OpSpec("all_reduce", "float32", "sum", None, (500_000,))
    with engines(list("abcd"), emulate="400,400,400,400") as group:
        plans: list[list[int]] = [[] for _ in group]

        def drive(rank: int, ops: int) -> None:
            for _ in range(ops):
                value = np.full(500_000, rank + 1.0, np.float32)
                group[rank].run(spec, value.ctypes.data, value.ctypes.data)
                assert (value == 10).all()
                plans[rank].append(group[rank].plan("all_reduce", 2_000_000).fingerprint())

        on_all(size, lambda rank: drive(rank, 12))
        for _, connection in group[3]._connections.data:
            tcp.pace(connection, 100 * MBIT / 3)
        for _ in range(5):
            on_all(size, lambda rank: drive(rank, 12))
            if group[0].topology.hosts[3].up_bytes_per_s < 200 * MBIT:
                break
        assert plans[0] == plans[1] == plans[2] == plans[3]
        assert len({*plans[0]}) > 1
        assert group[0].topology.hosts[3].up_bytes_per_s < 200 * MBIT
        assert group[0].topology.hosts[0].up_bytes_per_s > 200 * MBIT


def _receive_all(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed under this thread
        while connection.recv(1 << 20):
            pass


def count_of_two_megabytes() -> float:
    """Send them at 4 MB/s until the kernel has counted all; the seconds that it says the connection was busy."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        with receiver:
            tcp.pace(sender, 4e6)
            before = tcp.sent_so_far(sender)
            drain = threading.Thread(target=_receive_all, args=(receiver,), daemon=True)
            drain.start()
            sender.sendall(bytes(2_000_000))
            while tcp.sent_so_far(sender)[0] - before[0] < 2_000_000:
                time.sleep(0.01)
            busy_s = tcp.sent_so_far(sender)[1] - before[1]
            sender.shutdown(socket.SHUT_RDWR)
            assert busy_s > 0.25  # 2 MB at 4 MB/s
            time.sleep(0.1)
    return busy_s


def test_what_the_kernel_counts_of_a_connection() -> None:
    count_of_two_megabytes()


@pytest.mark.measured
def test_a_connection_is_busy_no_longer_than_its_bytes_take() -> None:
    assert count_of_two_megabytes() < 1.0


def test_an_interface_that_is_not_there_is_named() -> None:
    with pytest.raises(RendezvousError, match=r"interface 'eth77' is not here or has no address; there are: .*lo"):
        tcp.interface_addresses("lo, eth77")
    assert tcp.interface_addresses("lo") == ["127.0.0.1"]
    assert tcp.interface_addresses(None) == []
