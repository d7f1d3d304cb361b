"""Forming a group: one rank's mistake must not cost the others their timeout, and strangers decide nothing."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import pytest

from collectives.engine import bootstrap
from collectives.engine.runner import Engine, connect
from collectives.errors import PlanError, RendezvousError, UsageError
from collectives.options import Options, current_token
from collectives.schedule.op import OpSpec
from collectives.topology import Host, Topology
from collectives.transport import acceptor, connecting, control, rank_info, rendezvous, tcp
from collectives.transport.connecting import Patience
from collectives.transport.handshake import Hello, Secret, introduce
from collectives.transport.watched_store import WatchedStore
from tests.collectives.engine.group import AT_ONCE_S, MemoryStore, connect_all, engines, errors_of, on_all

TIMEOUT_S = 300.0  # what a mistake must not cost
TOKEN = "0123456789abcdef"
OF_RANK = threading.local()


def all_reduce(engine: Engine) -> float:
    value = np.ones(1000, np.float32)
    at = value.ctypes.data
    engine.run(OpSpec("all_reduce", "float32", "sum", None, (1000,)), at, at)
    return float(value[0])


def form(options: Callable[[int], Options], size: int = 3, store: MemoryStore | None = None) -> list[str]:
    """What each rank raised while the group formed, "" if nothing, of ranks that know OF_RANK.rank; all at once."""
    store = store or MemoryStore()

    def join(rank: int) -> None:
        OF_RANK.rank = rank
        connect(store, rank, size, "test", TIMEOUT_S, options(rank)).close()

    started = time.monotonic()
    errors = errors_of(size, join)
    assert time.monotonic() - started < AT_ONCE_S, "the others waited"
    return ["" if error is None else f"{type(error).__name__}: {error}" for error in errors]


def on_rank_1(**change: object) -> Callable[[int], Options]:
    return lambda rank: Options(host=f"h{rank}", **(change if rank == 1 else {}))  # type: ignore[arg-type]


def test_a_wrong_interface_on_one_host() -> None:
    errors = form(on_rank_1(interface="eth77"))
    assert all("interface 'eth77' is not here" in error for error in errors)
    assert all("a rank could not join the group: rank 1 (h1): interface" in errors[rank] for rank in (0, 2))


def test_a_missing_topology_file_on_one_host() -> None:
    errors = form(on_rank_1(topology="/nowhere/farm.json"))
    assert all(error.startswith("PlanError") for error in errors)
    assert all("rank 1 (h1): /nowhere/farm.json: the topology file cannot be read" in errors[rank] for rank in (0, 2))


def test_a_topology_file_of_other_hosts_on_one_host(tmp_path: Path) -> None:
    path = tmp_path / "farm.json"
    path.write_text(json.dumps({"hosts": [{"name": "elsewhere", "ranks": [0]}]}))
    errors = form(on_rank_1(topology=str(path)))
    assert all("rank 1 (h1)" in errors[rank] and "no host called" in errors[rank] for rank in (0, 2))


def test_another_slice_size_on_one_host() -> None:
    assert all("slice_bytes: 131072" in error for error in form(on_rank_1(slice_bytes=128 * 1024)))


def test_another_version_of_this_package_on_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    own_info = rank_info.own_info

    def other(rank: int, *rest: object) -> rank_info.RankInfo:
        info = own_info(rank, *rest)  # type: ignore[arg-type]
        return replace(info, versions={**info.versions, "narrowgauge": "0.0.1"}) if rank == 1 else info

    monkeypatch.setattr(rendezvous, "own_info", other)
    pattern = r"rank 0 \(h0\) has narrowgauge \S+, rank 1 \(h1\) has 0.0.1; install the same version"
    assert all(re.search(pattern, error) for error in form(on_rank_1()))


@pytest.mark.parametrize("plans_differ", [False, True])
def test_another_version_of_scipy_matters_if_it_makes_other_plans(
    plans_differ: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, plan = rank_info.math_versions, bootstrap.plan

    def versions() -> dict[str, str]:
        return {**real(), **({"scipy": "0.1"} if OF_RANK.rank == 1 else {})}

    class Plan:
        def fingerprint(self) -> int:
            return int(OF_RANK.rank)

    monkeypatch.setattr(rank_info, "math_versions", versions)
    if plans_differ:
        monkeypatch.setattr(bootstrap, "plan", lambda *arguments: Plan())
    errors = form(on_rank_1())
    if plans_differ:
        pattern = r"rank 0 \(h0\) has numpy \S+, scipy 1\S+; rank 1 \(h1\) has numpy \S+, scipy 0.1"
        assert all(re.search(pattern, error) for error in errors)
    else:
        assert errors == ["", "", ""]
    assert plan is not None


def test_a_program_packed_into_one_file_has_versions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nowhere)
    assert rank_info.own_info(0, Options(host="h0"), None).versions["numpy"] == np.__version__


def test_the_number_of_streams_is_decided_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two hosts of which one lets a connection have much more in flight; by itself each would take another number."""
    path, store = tmp_path / "farm.json", MemoryStore()
    path.write_text(Topology(tuple(Host(f"h{r}", (r,), 1.25e8, 1.25e8, latency_s=20e-3) for r in range(2))).to_json())
    monkeypatch.setattr(tcp, "max_bytes_in_flight", lambda: (4_000_000, 64_000_000)[OF_RANK.rank])

    def join(rank: int) -> int:
        OF_RANK.rank = rank
        options = Options(host=f"h{rank}", topology=str(path))
        engine = connect(store, rank, 2, "test", TIMEOUT_S, options)
        try:
            assert all_reduce(engine) == 2
            return len(engine._connections.data)
        finally:
            engine.close()

    assert on_all(2, join) == [3, 3]


def test_ranks_that_ask_for_different_numbers_of_streams_take_the_smallest() -> None:
    store = MemoryStore()

    def join(rank: int) -> int:
        engine = connect(store, rank, 3, "test", TIMEOUT_S, Options(host=f"h{rank}", streams=(5, 3, "auto")[rank]))
        count = len(engine._connections.data)
        engine.close()
        return count

    assert on_all(3, join) == [6, 6, 6]


@pytest.mark.parametrize("key", ["listens", "token", "memory", "basis", "digest", "streams", "near"])
def test_an_error_in_any_phase_is_what_all_report(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = WatchedStore.publish

    def failing(store: WatchedStore, at: str, value: object) -> None:
        if at == key and store.rank == 0:
            raise ZeroDivisionError("in the works")
        publish(store, at, value)

    monkeypatch.setattr(WatchedStore, "publish", failing)
    errors = form(on_rank_1())
    assert errors[0] == "ZeroDivisionError: in the works"
    assert all("rank 0 (h0): ZeroDivisionError: in the works" in errors[rank] for rank in (1, 2))


def silent_peer(store: MemoryStore, rank: int, size: int, server: socket.socket | None = None) -> WatchedStore:
    """A rank that says who it is and where it listens, and does not connect; without `server` it doesn't listen."""
    watched = WatchedStore(store, rank, size, "test", 0, None, TIMEOUT_S, f"h{rank}")
    info = rank_info.own_info(rank, Options(host=f"h{rank}"), None)
    watched.bind(watched.gather("about", info.to_json()))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = (server or closed).getsockname()[1]
    watched.gather("listens", {"addresses": ["127.0.0.1"], "port": port})
    return watched


@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_ended_before_it_had_a_connection(dead: int) -> None:
    """The others find out at the port where it listened, whether they were to connect to it or it to them."""
    store = MemoryStore()
    if dead == 0:
        store.set("token/0", '- "0123"')

    def join(rank: int) -> None:
        if rank == dead:
            silent_peer(store, rank, 2)
        else:
            connect(store, rank, 2, "test", TIMEOUT_S, Options(host=f"h{rank}")).close()

    started = time.monotonic()
    error = errors_of(2, join)[1 - dead]
    assert time.monotonic() - started < AT_ONCE_S
    assert isinstance(error, RendezvousError)
    assert f"rank {dead} (h{dead})" in str(error)
    assert "its process has ended" in str(error)


def test_a_rank_that_never_comes_is_named_after_the_timeout() -> None:
    words = r"rank 0 \(h0\), forming group test: rank 1 of 2 did not come to the .*\(wait timeout after 500ms\)"
    with pytest.raises(RendezvousError, match=words):
        connect(MemoryStore(), 0, 2, "test", 0.5, Options(host="h0"))


def test_a_rank_that_stops_halfway_is_named_with_how_far_it_came() -> None:
    store = MemoryStore()

    def join(rank: int) -> None:
        if rank == 1:
            info = rank_info.own_info(rank, Options(host="h1"), None)
            WatchedStore(store, 1, 2, "test", 0, None, 5.0, "h1").gather("about", info.to_json())
        else:
            connect(store, rank, 2, "test", 2.0, Options(host=f"h{rank}")).close()

    error, _ = errors_of(2, join)
    assert "rank 1 (h1) came as far as 'about' and did not publish 'listens' within 2 s" in str(error)


def test_what_a_rank_published_just_before_it_ended_counts() -> None:
    store = MemoryStore()
    first, second = (WatchedStore(store, rank, 2, "test", 0, None, TIMEOUT_S, f"h{rank}") for rank in range(2))

    def endings() -> dict[int, control.Ending]:
        """Asked after the store was, which is when the rank publishes and ends."""
        first.publish("word", "of 0")
        return {0: control.DIED}

    second.watch(endings)
    assert second.read("word", 0) == "of 0"
    with pytest.raises(RendezvousError, match=r"rank 0 died"):
        second.read("another", 0)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ((TOKEN, "another secret of 26 bytes"), "is not signed with this group's token"),
        ((TOKEN, None), "is not signed: that rank has no token|is signed: that rank has a token and this one has none"),
    ],
)
def test_ranks_with_different_tokens(tokens: tuple[str, str | None], words: str) -> None:
    for error in form(lambda rank: Options(host=f"h{rank}", token=tokens[rank]), size=2):
        assert re.search(words, error)
        assert "give all ranks the same NARROWGAUGE_TOKEN" in error
        assert not any(token and token in error for token in tokens)


def test_what_a_stranger_writes_under_a_ranks_name_is_not_believed() -> None:
    """Also not a failure: whoever has no token cannot end the group with words of its own."""
    store = MemoryStore()
    store.set("failed", '- {"rank":1,"kind":"PlanError","text":"go home"}')
    assert form(lambda rank: Options(host=f"h{rank}", token=TOKEN), store=store) == ["", "", ""]
    real = store.set

    def overwrite(key: str, value: str) -> None:
        real(key, '- {"fault":null}' if key == "near/1" else value)

    fresh = MemoryStore()
    real, fresh.set = fresh.set, overwrite  # type: ignore[method-assign]
    errors = form(lambda rank: Options(host=f"h{rank}", token=TOKEN), store=fresh)
    assert all("under 'near' of rank 1 (h1) is not signed" in error for error in errors)


def test_what_was_passed_on_at_an_earlier_meeting_is_not_believed() -> None:
    """Before the ranks know each other, signatures are the same at all meetings of a group."""

    def meeting(store: MemoryStore, rank: int, nonce: str) -> list[object]:
        return WatchedStore(store, rank, 2, "test", 0, TOKEN, TIMEOUT_S, f"h{rank}").gather("about", f"{nonce} {rank}")

    earlier, now = MemoryStore(), MemoryStore()
    assert on_all(2, lambda rank: meeting(earlier, rank, "old")) == [["old 0", "old 1"]] * 2
    now.set("about.together/0", earlier.get("about.together/0").decode())
    with pytest.raises(RendezvousError, match=r"rank 1 \(h1\), .* 'about.together' of rank 0 is of an earlier meeting"):
        meeting(now, 1, "new")


def test_bytes_of_a_stranger_that_are_no_text_are_refused_as_unsigned() -> None:
    store = MemoryStore()
    store._values["about/1"] = b"\xff\xfe"
    with pytest.raises(RendezvousError, match=r"what the store has under 'about' of rank 1 is not signed"):
        WatchedStore(store, 0, 2, "test", 0, TOKEN, TIMEOUT_S, "h0").gather("about", "me")


def test_tokens_are_long_enough_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"token has 5 characters; wanted at least 16.*secrets\.token_hex") as caught:
        Options(token="horse")
    assert "horse" not in str(caught.value)
    assert TOKEN not in repr(Options(token=TOKEN))
    monkeypatch.setenv("NARROWGAUGE_TOKEN", TOKEN)
    monkeypatch.setenv("NARROWGAUGE_STREAMS", "many")
    assert current_token() == TOKEN


def listening_ports() -> set[str]:
    """Addresses at which this process listens."""
    return {c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}


def test_a_group_on_one_machine_listens_on_loopback_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    make = rendezvous.Rendezvous._make

    def looking(formed: rendezvous.Rendezvous, streams: set[int]) -> object:
        seen.append(listening_ports())
        return make(formed, streams)

    before = listening_ports()
    monkeypatch.setattr(rendezvous.Rendezvous, "_make", looking)
    with engines(["a", "a", "b"], interface=an_interface()) as group:
        assert on_all(3, lambda rank: all_reduce(group[rank])) == [3, 3, 3]
        assert listening_ports() == before
    assert set.union(*seen) - before <= {"127.0.0.1"}


def an_interface() -> str:
    table = psutil.net_if_addrs()
    name = next((name for name in table if name != "lo" and any(a.family == socket.AF_INET for a in table[name])), None)
    if name is None:
        pytest.skip("this machine has no network interface beside loopback")
    return name


def test_several_machines_listen_on_the_interface_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = an_interface()
    (address,) = tcp.interface_addresses(name)
    own = rank_info.own_info(0, Options(interface=name), None)
    elsewhere = replace(own, rank=1, machine="another")
    assert rank_info.listening_addresses(own, [own, elsewhere], None) == (address,)
    unnamed = rank_info.own_info(0, Options(), address)
    assert rank_info.listening_addresses(unnamed, [unnamed, elsewhere], address) == (address,)
    assert rank_info.listening_addresses(unnamed, [unnamed, elsewhere], None) == ()
    (server,) = connecting.listen([address])
    with server:
        assert server.getsockname()[0] == address
    several = connecting.listen([address, "127.0.0.1"])
    assert len({server.getsockname()[1] for server in several}) == 1
    for server in several:
        server.close()


def test_a_group_over_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(a.address == "::1" for a in psutil.net_if_addrs().get("lo", [])):
        pytest.skip("this machine has no IPv6")
    monkeypatch.setattr(tcp, "LOOPBACK", "::1")
    with engines(["a", "b", "b"]) as group:
        assert group[0]._connections.data[0][1].family == socket.AF_INET6
        assert on_all(3, lambda rank: all_reduce(group[rank])) == [3, 3, 3]


def test_who_listens_everywhere_is_reached_by_either_protocol() -> None:
    (server,) = connecting.listen([])
    with server:
        port = server.getsockname()[1]
        addresses = ["127.0.0.1"] + (["::1"] if server.family == socket.AF_INET6 else [])
        for address in addresses:
            connecting.connect([address], port, Patience(time.monotonic() + 10)).close()


def test_a_port_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RendezvousError, match=f"127.0.0.1:{port}: Connection refused"):
        connecting.connect(["127.0.0.1"], port, Patience(time.monotonic() + 0.3))


def test_something_else_at_a_peers_first_address_is_passed_over() -> None:
    """As on machines that all call their bridge 172.17.0.1: what answers there is not the peer."""
    wrong = socket.create_server(("127.0.0.2", 0))
    port = wrong.getsockname()[1]
    with wrong, socket.create_server(("127.0.0.1", port)) as right:

        def greet(connection: socket.socket, patience: Patience) -> None:
            if connection.getpeername()[0] == "127.0.0.2":
                raise ConnectionError("what answers there does not hold this group's token")

        with connecting.connect(
            ["127.0.0.2", "127.0.0.1"], port, Patience(time.monotonic() + 10), None, greet
        ) as connection:
            assert connection.getpeername() == right.getsockname()


def test_a_thousand_forged_connections_make_one_short_message() -> None:
    store = MemoryStore()

    def forge(port: int) -> None:
        for _ in range(1000):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: somebody-lost\r\n\r\n")

    def join(rank: int) -> None:
        if rank == 0:
            connect_all(store, rank, 2, f"h{rank}", timeout_s=4.0)
        else:
            with socket.create_server(("127.0.0.1", 0)) as server:
                forge(silent_peer(store, 1, 2, server).read("listens", 0)["port"])
                time.sleep(4)

    error = errors_of(2, join)[0]
    assert isinstance(error, RendezvousError)
    assert re.search(r"rank 1 \(h1\) did not connect; refused \d{3,4} connections: 127.0.0.1: it announced", str(error))
    assert "more" in str(error)
    assert len(str(error)) < 600


def test_strangers_are_counted_and_the_first_few_shown() -> None:
    strangers = acceptor.Strangers()
    for number in range(1000):
        strangers.add("10.0.0.9", f"it announced {number} bytes " + "x" * 500)
    assert str(strangers).startswith("; refused 1000 connections: 10.0.0.9: it announced 0 bytes")
    assert str(strangers).endswith("and 997 more")
    assert len(str(strangers)) < 500
    assert str(acceptor.Strangers()) == ""


def test_silent_strangers_take_no_more_places_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times as many as there are places connect and say nothing; the ranks meet, and only few were let in."""
    most: list[int] = []
    turn = acceptor.Acceptor._turn

    def looking(self: acceptor.Acceptor) -> None:
        turn(self)
        most.append(len(self._pending))

    monkeypatch.setattr(acceptor.Acceptor, "_turn", looking)
    store, silent = MemoryStore(), list[socket.socket]()
    publish = WatchedStore.publish

    def strangers_first(watched: WatchedStore, key: str, value: object) -> None:
        publish(watched, key, value)
        if key == "listens" and watched.rank == 1:
            port = watched.read("listens", 0)["port"]
            silent.extend(socket.create_connection(("127.0.0.1", port)) for _ in range(3 * acceptor.MAX_PENDING))

    monkeypatch.setattr(WatchedStore, "publish", strangers_first)
    started = time.monotonic()
    group = on_all(2, lambda rank: connect(store, rank, 2, "test", TIMEOUT_S, Options(host=f"h{rank}")))
    assert time.monotonic() - started < AT_ONCE_S
    assert on_all(2, lambda rank: all_reduce(group[rank])) == [2, 2]
    on_all(2, lambda rank: group[rank].close())
    for connection in silent:
        connection.close()
    assert len(silent) == 3 * acceptor.MAX_PENDING
    assert max(most) == acceptor.MAX_PENDING


def test_who_has_gone_before_it_is_admitted_is_not_taken() -> None:
    """The kernel keeps the hello of a rank that lost patience; its next connection is the one to take."""
    servers, secret, key = connecting.listen(["127.0.0.1"]), Secret(TOKEN.encode(), b""), (1, 1)
    admits = acceptor.Acceptor(servers, "test", 0, 0, 2, secret)

    def come(patience_s: float) -> socket.socket:
        connection = socket.create_connection(servers[0].getsockname())
        connection.setblocking(False)
        try:
            if not admits.is_alive():
                admits._accept(servers[0])
            introduce(connection, Hello("test", 0, 1, 0, 1), secret, Patience(time.monotonic() + patience_s))
        except BaseException:
            connection.close()
            raise
        return connection

    try:
        with pytest.raises(TimeoutError):
            come(0.2)
        (pending,) = admits._pending.values()
        admits._receive(pending)
        assert admits.missing({key}) == [1]
        assert admits.strangers.count == 0
        admits.start()
        with come(100) as theirs, admits.take({key}, Patience(time.monotonic() + 100))[key] as ours:
            assert ours.getpeername() == theirs.getsockname()
    finally:
        admits.close()


def test_the_descriptor_limit_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        with engines(["a", "b"]):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, connecting.MAX_DESCRIPTORS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_acceptor_survives_a_moment_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    accept, failures = socket.socket.accept, iter(range(3))

    def failing(server: socket.socket) -> tuple[socket.socket, object]:
        if next(failures, None) is not None:
            raise OSError(24, os.strerror(24))
        return accept(server)

    monkeypatch.setattr(socket.socket, "accept", failing)
    with engines(["a", "b"]) as group:
        assert on_all(2, lambda rank: all_reduce(group[rank])) == [2, 2]


def test_two_machines_of_one_name_are_two_hosts() -> None:
    def info(rank: int, machine: str, emulated: bool = False) -> rendezvous.RankInfo:
        return rendezvous.RankInfo(rank, "ubuntu", emulated, machine, (), 0, 0, 1, None)

    names = rendezvous.host_names([info(0, "m1"), info(1, "m2"), info(2, "m1")])
    assert names == ["ubuntu", "ubuntu#2", "ubuntu"]
    assert rendezvous.host_names([info(0, "m1", True), info(1, "m2", True)]) == ["ubuntu", "ubuntu"]


def test_a_plan_error_stays_one_while_ranks_exchange_words() -> None:
    store, (near, far) = MemoryStore(), socket.socketpair()
    watched, other = (WatchedStore(store, rank, 2, "test", 0, None, TIMEOUT_S, f"h{rank}") for rank in range(2))
    other.announce(PlanError("no such file"))
    formed = rendezvous.Rendezvous(watched, Options(host="h0"))
    formed.connections.control[1] = near
    with near, far, pytest.raises(PlanError, match=r"rank 1 \(h1\): no such file"):
        formed.exchange([1], "words")


def test_a_plan_error_stays_one_on_all_ranks() -> None:
    store = MemoryStore()

    def join(rank: int) -> None:
        connect(store, rank, 2, "test", TIMEOUT_S, Options(host=f"h{rank}", topology="/no" if rank else None)).close()

    assert all(isinstance(error, PlanError) for error in errors_of(2, join))


class CountingStore(MemoryStore):
    """Counts the keys that each thread has written, and those that it has read."""

    def __init__(self) -> None:
        super().__init__()
        self.written: Counter[int] = Counter()
        self.read: Counter[int] = Counter()

    def set(self, key: str, value: str) -> None:
        self.written[threading.get_ident()] += 1
        super().set(key, value)

    def get(self, key: str) -> bytes:
        self.read[threading.get_ident()] += 1
        return super().get(key)


@pytest.mark.parametrize("size", [2, 9])
def test_a_rank_writes_one_key_and_reads_one_however_many_there_are(size: int) -> None:
    store = CountingStore()

    def gather(rank: int) -> tuple[list[str], int, int]:
        found = WatchedStore(store, rank, size, "test", 0, TOKEN, TIMEOUT_S, f"h{rank}").gather("word", f"of {rank}")
        return found, store.written[threading.get_ident()], store.read[threading.get_ident()]

    words = [f"of {rank}" for rank in range(size)]
    first, *others = on_all(size, gather)
    assert first == (words, 2, size + 1)
    assert others == [(words, 1, 1)] * (size - 1)
