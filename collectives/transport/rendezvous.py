"""Forming a group: every rank publishes its `RankInfo` through the store, then each pair of ranks shares 2 + streams
connections.

A rank connects to the ranks below it and is connected to by those above. The first connection of a pair is the
control connection: it carries an abort (why) or a goodbye, never slices, so an abort arrives however full the
others are. The last carries messages between the two (send and recv), which must not wait behind slices.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass
from typing import Protocol

from collectives.errors import RendezvousError
from collectives.options import Options
from collectives.transport import tcp
from collectives.transport.handshake import CONTROL_STREAM, MESSAGE_STREAM, Hello, Refused, admit, introduce

Streams = dict[tuple[int, int], socket.socket]
"""Connections by the peer's rank and the stream's number."""

HANDSHAKE_S = 10.0
ASK_FAILED_S = 0.3


class Store(Protocol):
    """What is needed of a torch.distributed store."""

    def set(self, key: str, value: str) -> object: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


@dataclass(frozen=True)
class RankInfo:
    """What a rank publishes about itself.

    Attributes:
        host: its host's name: as given, else the machine's.
        machine: identity of the kernel and network it runs on.
        addresses, port: where it listens.
        interfaces: how many of the addresses belong to interfaces that the options name; 0 if they name none.
        log: path of its log, None if it has none.
    """

    rank: int
    host: str
    emulated: bool
    machine: str
    addresses: tuple[str, ...]
    interfaces: int
    port: int
    streams: int
    log: str | None

    def describe(self) -> str:
        return f"rank {self.rank} ({self.host})"

    def link_key(self) -> str:
        """What measurements of its links are kept under: the machine, and its addresses if interfaces are named."""
        return f"{self.machine} {','.join(self.addresses)}" if self.interfaces else self.machine


@dataclass
class Connections:
    """A formed group: `RankInfo` by rank, connections for control and for messages by rank, (rank, connection) for each
    stream of slices."""

    rank_infos: list[RankInfo]
    control: dict[int, socket.socket]
    messages: dict[int, socket.socket]
    data: list[tuple[int, socket.socket]]

    def close(self) -> None:
        for connection in [*self.control.values(), *self.streams()]:
            connection.close()

    def streams(self) -> list[socket.socket]:
        """All but the control connections."""
        return [*self.messages.values(), *(connection for _, connection in self.data)]


def rendezvous(
    store: Store,
    rank: int,
    size: int,
    group: str,
    generation: int,
    options: Options,
    timeout_s: float,
    streams: int = 1,
) -> Connections:
    """Meet the other ranks of a group; returns when all connections of this rank are up and authenticated.

    Args:
        timeout_s: seconds for all of it.
        streams: connections for slices to each peer; if ranks ask for different numbers, the smallest, but one for each
            interface of the rank that has most. They are spread over the interfaces.

    Raises:
        RendezvousError: a rank did not come, could not be reached, or does not hold the token; names it.
    """
    deadline = time.monotonic() + timeout_s
    interfaces = tcp.interface_addresses(options.interface)
    addresses = interfaces or tcp.own_addresses(_store_host(store))
    with tcp.listen(addresses) as server:
        own = _own_info(rank, options, addresses, len(interfaces), server.getsockname()[1], streams)
        store.set(f"rank_info/{rank}", json.dumps(asdict(own)))
        token = _agree_on_token(store, rank, options)
        rank_infos = [_read_rank_info(store, other, size) for other in range(size)]
        streams = max(min(each.streams for each in rank_infos), *(each.interfaces for each in rank_infos))
        # All ranks listen before any of them publishes its port, so there is no order in which to connect: each
        # connects to those below it while its acceptor admits those above it.
        above = _expected(range(rank + 1, size), streams)
        acceptor = _Acceptor(server, store, group, generation, token, above, deadline)
        made: Streams = {}
        try:
            acceptor.start()
            for other, stream in sorted(_expected(range(rank), streams)):
                hello = Hello(group, generation, rank, stream)
                made[other, stream] = _connect(own, rank_infos[other], hello, token, deadline)
            made.update(acceptor.result(rank_infos))
        except BaseException as error:
            is_first = _is_first_failure(store, own, error)  # published before any peer sees its connection end
            for connection in [*made.values(), *acceptor.cancel()]:
                connection.close()
            if is_first or not isinstance(error, RendezvousError) or acceptor.failed:
                raise
            raise _failed_elsewhere(store) from None
    return _tuned(own, rank_infos, made)


def _own_info(rank: int, options: Options, addresses: list[str], interfaces: int, port: int, streams: int) -> RankInfo:
    return RankInfo(
        rank=rank,
        host=options.host or socket.gethostname(),
        emulated=options.host is not None,
        machine=tcp.machine_identity(),
        addresses=tuple(addresses),
        interfaces=interfaces,
        port=port,
        streams=streams,
        log=options.log,
    )


def _is_first_failure(store: Store, own: RankInfo, error: BaseException) -> bool:
    """Publish why this rank gave up, unless another did before it: no rank should wait for one that has given up, and
    what failed first is the cause that all should report."""
    if store.check(["failed"]):
        return False
    store.set("failed", str(error) if isinstance(error, RendezvousError) else f"{own.describe()}: {error!r}")
    return True


def _tuned(own: RankInfo, rank_infos: list[RankInfo], made: Streams) -> Connections:
    """The connections with the options of their use, those of each use apart."""
    for (other, stream), connection in made.items():
        connection.settimeout(None)
        tcp.tune(connection)
        if stream == CONTROL_STREAM:
            tcp.tune_control(connection)
        tcp.tune_congestion(connection, rank_infos[other].machine == own.machine)
    control = {other: connection for (other, stream), connection in made.items() if stream == CONTROL_STREAM}
    messages = {other: connection for (other, stream), connection in made.items() if stream == MESSAGE_STREAM}
    own_use = (CONTROL_STREAM, MESSAGE_STREAM)
    data = [(other, connection) for (other, stream), connection in sorted(made.items()) if stream not in own_use]
    return Connections(rank_infos, control, messages, data)


def host_names(rank_infos: list[RankInfo]) -> list[str]:
    """Each rank's host as a name that is unique: two machines that both call themselves "ubuntu" become two hosts."""
    names: dict[tuple[str, str], str] = {}
    for rank_info in rank_infos:
        key = (rank_info.host, "" if rank_info.emulated else rank_info.machine)
        if key not in names:
            namesakes = sum(host == rank_info.host for host, _ in names)
            names[key] = rank_info.host if not namesakes else f"{rank_info.host}#{namesakes + 1}"
    return [names[rank_info.host, "" if rank_info.emulated else rank_info.machine] for rank_info in rank_infos]


def _expected(ranks: range, streams: int) -> set[tuple[int, int]]:
    return {(rank, stream) for rank in ranks for stream in (*range(streams + 1), MESSAGE_STREAM)}


def _store_host(store: Store) -> str | None:
    """The address of a TCPStore, below any number of prefixes; None for a store that is no server."""
    inner: object = store
    while (below := getattr(inner, "underlying_store", None)) is not None:
        inner = below
    host = getattr(inner, "host", None)
    return host if isinstance(host, str) else None


def _agree_on_token(store: Store, rank: int, options: Options) -> bytes:
    """The token as configured; without one rank 0 makes one. Whoever can read the store can then join the group."""
    if options.token:
        return options.token.encode()
    if rank == 0:
        store.set("token", secrets.token_hex(32))
    return bytes(store.get("token"))


def _read_rank_info(store: Store, rank: int, size: int) -> RankInfo:
    try:
        fields = json.loads(bytes(store.get(f"rank_info/{rank}")))
    except RuntimeError as error:  # torch's stores raise DistStoreError, a RuntimeError, when a key does not come
        raise RendezvousError(f"rank {rank} of {size} did not come to the rendezvous: {error}") from None
    return RankInfo(**{**fields, "addresses": tuple(fields["addresses"])})


def _connect(own: RankInfo, peer: RankInfo, hello: Hello, token: bytes, deadline: float) -> socket.socket:
    """An authenticated connection to a peer. Ranks of one machine use loopback.

    Raises:
        RendezvousError: the peer cannot be reached, or the handshake failed; names both ends.
    """
    addresses, source = _route(own, peer, hello.stream)
    try:
        connection = tcp.connect(addresses, peer.port, deadline, source)
    except RendezvousError as error:
        raise RendezvousError(
            f"{own.describe()} cannot reach {peer.describe()}: {error}; "
            "check that no firewall is between them, or name a common network by interface="
        ) from None
    connection.settimeout(HANDSHAKE_S)
    try:
        introduce(connection, hello, token)
    except Refused as refusal:
        connection.close()
        raise RendezvousError(f"{own.describe()} connected to {peer.describe()}: {refusal}") from None
    return connection


def _route(own: RankInfo, peer: RankInfo, stream: int) -> tuple[list[str], str | None]:
    """Addresses to try for a stream, and the own address to connect from (None: the kernel's choice)."""
    if own.machine == peer.machine:
        return ["127.0.0.1", *peer.addresses], None  # a peer with named interfaces does not listen on loopback
    # Another machine's loopback address would lead back to this one.
    addresses = [address for address in peer.addresses if not address.startswith("127.")]
    if peer.interfaces > 1:
        addresses = [addresses[stream % peer.interfaces]]
    return addresses, own.addresses[stream % own.interfaces] if own.interfaces > 1 else None


def _failed_elsewhere(store: Store, more: str = "") -> RendezvousError:
    return RendezvousError(f"a rank could not join the group: {bytes(store.get('failed')).decode()}{more}")


class _Acceptor(threading.Thread):
    """Admits the connections of the ranks above; others are refused and remembered for the error.

    Attributes:
        wanted: (rank, stream) of the connections to admit. admitted: those so far.
        failed: another rank has published that it gave up.
        over: nobody is admitted any more.
    """

    def __init__(
        self, server: socket.socket, store: Store, group: str, generation: int, token: bytes,
        wanted: set[tuple[int, int]], deadline: float,
    ) -> None:  # fmt: skip
        super().__init__(name="narrowgauge-accept", daemon=True)
        self.server, self.store, self.group, self.generation, self.token = server, store, group, generation, token
        self.wanted, self.deadline = wanted, deadline
        self.admitted: dict[tuple[int, int], socket.socket] = {}
        self.refused: list[str] = []
        self.over = False
        self.failed = False
        self.lock = threading.Lock()

    def run(self) -> None:
        self.server.settimeout(0.01)
        ask_at = time.monotonic() + ASK_FAILED_S
        while len(self.admitted) < len(self.wanted) and time.monotonic() < self.deadline and not self.over:
            try:
                connection, (address, *_) = self.server.accept()
            except TimeoutError:
                if time.monotonic() > ask_at:
                    ask_at = time.monotonic() + ASK_FAILED_S
                    if self.store.check(["failed"]):
                        self.failed = True
                        return
                continue
            except OSError:
                if self.over:  # the listening socket was closed together with the rendezvous
                    return
                raise
            # Each on its own thread: a stranger that connects and sends nothing delays no peer.
            threading.Thread(target=self._admit, args=(connection, address), daemon=True).start()

    def _admit(self, connection: socket.socket, address: str) -> None:
        connection.settimeout(HANDSHAKE_S)
        try:
            hello = admit(connection, self.group, self.generation, self.token)
            key = (hello.rank, hello.stream)
            with self.lock:
                if key not in self.wanted or key in self.admitted or self.over:
                    raise Refused(f"rank {hello.rank} stream {hello.stream} is not expected")
                self.admitted[key] = connection
        except Refused as refusal:
            connection.close()
            with self.lock:
                self.refused.append(f"{address}: {refusal}")

    def cancel(self) -> list[socket.socket]:
        """Admit nobody any more; the connections so far."""
        with self.lock:
            self.over = True
            admitted = list(self.admitted.values())
            self.admitted.clear()
        return admitted

    def result(self, rank_infos: list[RankInfo]) -> dict[tuple[int, int], socket.socket]:
        """The admitted connections by (rank, stream), once all are there.

        Raises:
            RendezvousError: the deadline has passed, or another rank gave up.
        """
        self.join()
        with self.lock:
            self.over = True
        refused = f"; refused: {'; '.join(self.refused)}" if self.refused else ""
        if self.failed:
            raise _failed_elsewhere(self.store, refused)
        missing = sorted({rank for rank, _ in self.wanted - set(self.admitted)})
        if missing:
            raise RendezvousError(
                f"{', '.join(rank_infos[rank].describe() for rank in missing)} did not connect{refused}"
            )
        return self.admitted
