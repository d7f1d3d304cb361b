"""Forming a group, one phase after the other.

    about       every rank publishes its `RankInfo`: versions are compared, and the meeting gets its name from them
    listens     every rank listens, where the others reach it and no wider, and publishes the port
    control     each pair of ranks makes its first connection, the control connection. From then on the end of a process
                is known at once, and whatever must be equal on all ranks is agreed on under that watch
    streams     each pair makes one connection for messages between the two (send and recv), which must not wait behind
                slices, and as many for slices as was decided

A rank connects to the ranks below it and is connected to by those above. The control connection carries an abort (why)
or a goodbye, never slices, so an abort arrives however full the others are.

Whatever goes wrong in any phase, up to the end of `meet`, is published before the first connection closes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from collectives.errors import NarrowgaugeError, RendezvousError
from collectives.options import Options
from collectives.transport import connecting, tcp
from collectives.transport.acceptor import Acceptor, Key, no_descriptors
from collectives.transport.connecting import NO_DESCRIPTORS, Patience
from collectives.transport.control import ControlChannel, Ending, ending
from collectives.transport.handshake import CONTROL_STREAM, MESSAGE_STREAM, Hello, Refused, Secret, introduce
from collectives.transport.rank_info import (
    RankInfo,
    at,
    check_versions,
    host_names,
    listening_addresses,
    own_info,
    read_info,
)
from collectives.transport.watched_store import INTRODUCTION, Endings, Store, WatchedStore, store_host

__all__ = ["Connections", "RankInfo", "Rendezvous", "Store", "host_names", "meet"]

logger = logging.getLogger(__name__)
WORDS_LIMIT = 4096
LOOK_S = 2.0


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


@contextlib.contextmanager
def meet(
    store: Store, rank: int, size: int, group: str, generation: int, options: Options, timeout_s: float,
    parent: Endings | None = None,
) -> Iterator[Rendezvous]:  # fmt: skip
    """Come to the meeting of a group's ranks. At the end of the block nobody listens any more; if it ends with an
    error, that is published for the others, and all connections are closed.

    Args:
        timeout_s: seconds until all have come and connected; `WatchedStore.renew` gives more for what follows.
        parent: which of these ranks have left the group that this one is a part of.

    Raises:
        RendezvousError: a rank did not come, failed, could not be reached, has another version, or does not hold the
            token; names it. What another rank failed with is raised as the same kind of error.
    """
    host = options.host or socket.gethostname()
    watched = WatchedStore(store, rank, size, group, generation, options.token, timeout_s, host)
    if parent is not None:
        watched.watch(parent)
    formed = Rendezvous(watched, options)
    try:
        formed._introduce_ranks(store)
        yield formed
    except BaseException as error:
        first = formed._failed(error)
        if first is error:
            raise
        raise first from None
    finally:
        formed._stop_listening()


def announce(
    store: Store, rank: int, size: int, group: str, token: str | None, timeout_s: float, error: BaseException
) -> None:
    """Publish that this rank failed before it could come to the meeting, so that the others don't wait for it."""
    WatchedStore(store, rank, size, group, 0, token, timeout_s, socket.gethostname()).announce(error)


class Rendezvous:
    """One rank at the meeting of its group.

    Attributes:
        store: what the ranks publish and wait for.
        rank_infos: of all ranks.
        connections: made so far. Whoever takes them closes them, if `meet` ended well.
    """

    def __init__(self, store: WatchedStore, options: Options) -> None:
        self.store = store
        self.rank, self.size = store.rank, store.size
        self.rank_infos: list[RankInfo] = []
        self.connections = Connections(self.rank_infos, {}, {}, [])
        self._options = options
        self._acceptor: Acceptor | None = None
        self._secret = Secret(b"", b"")
        self._streams = 0
        self._look_at = time.monotonic() + LOOK_S
        self._store_host: str | None = None

    @property
    def patience(self) -> Patience:
        """To wait for a peer with."""
        return Patience(self.store.deadline, self.store.check)

    def connect(self) -> None:
        """Make the control connections; from here on the end of any rank's process ends every wait.

        Raises:
            RendezvousError: as `meet`.
        """
        own = self.rank_infos[self.rank]
        if self.size == 1:
            return
        listening = listening_addresses(own, self.rank_infos, self._store_host)
        servers = connecting.listen(listening)
        try:
            where = {"addresses": list(listening), "port": servers[0].getsockname()[1]}
            published = self.store.gather("listens", where)
            names = self.store.names
            self.rank_infos[:] = [at(i, w, names[i.rank]) for i, w in zip(self.rank_infos, published, strict=True)]
            self._secret = Secret(self._agree_on_token(), self.store.session)
            group, generation = self.store.group, self.store.generation
            self._acceptor = Acceptor(servers, group, generation, self.rank, self.size, self._secret)
        except BaseException:
            for server in servers:
                server.close()
            raise
        self._acceptor.start()
        self.connections.control.update((peer, each) for (peer, _), each in self._make({CONTROL_STREAM}).items())
        self.store.watch(self._endings)

    def open_streams(self, count: int) -> None:
        """Make connections for slices, until there are `count` to each peer, and with the first of them the one for
        messages. All ranks must ask for the same."""
        streams = set(range(self._streams + 1, count + 1)) | (set() if self._streams else {MESSAGE_STREAM})
        made = self._make(streams)
        for (peer, stream), connection in list(made.items()):
            if stream == MESSAGE_STREAM:
                self.connections.messages[peer] = connection
                del made[peer, stream]
        self._streams = max(self._streams, count)
        data = [*self.connections.data, *((peer, connection) for (peer, _), connection in sorted(made.items()))]
        self.connections.data[:] = sorted(data, key=lambda each: each[0])

    def exchange(self, ranks: list[int], words: object) -> dict[int, object]:
        """Say something to some ranks on their control connections, and what they say in turn; each must call it.

        Unlike what stands in the store, that comes from the process that proved the token and from nobody else.
        """
        payload, heard = tcp.frame(json.dumps(words).encode()), dict[int, object]()
        for do in (self._say, self._hear):  # first to all: a few bytes, which no peer has to read first
            for peer in ranks:
                connection = self.connections.control[peer]
                connection.setblocking(False)
                try:
                    do(peer, connection, payload, heard)
                except NarrowgaugeError:  # what another rank failed with; some are ValueErrors
                    raise
                except (OSError, ValueError, RecursionError) as error:
                    who, other = self.store.names[self.rank], self.store.names[peer]
                    raise RendezvousError(f"{who}: lost {other} while the group formed: {error}") from None
                finally:
                    connection.setblocking(True)
        return heard

    def _say(self, peer: int, connection: socket.socket, payload: bytes, heard: dict[int, object]) -> None:
        connecting.send_within(connection, payload, self.patience)

    def _hear(self, peer: int, connection: socket.socket, payload: bytes, heard: dict[int, object]) -> None:
        heard[peer] = json.loads(connecting.receive_frame_within(connection, WORDS_LIMIT, self.patience))

    def _introduce_ranks(self, store: Store) -> None:
        """Phase "about"."""
        connecting.raise_descriptor_limit()
        self._store_host = store_host(store)
        own = own_info(self.rank, self._options, self._store_host)
        published = self.store.gather(INTRODUCTION, own.to_json())
        names = self.store.names
        for other, fields in enumerate(published):
            self.rank_infos.append(read_info(fields, other, names[other]))
            names[other] = self.rank_infos[other].describe()
        check_versions(self.rank_infos)
        self.store.bind(published)

    def _agree_on_token(self) -> bytes:
        """The token as configured; without one rank 0 makes one. Whoever can read the store can then join the group."""
        if self._options.token:
            return self._options.token.encode()
        return str(self.store.decide("token", lambda: secrets.token_hex(32))).encode()

    def _make(self, streams: set[int]) -> dict[Key, socket.socket]:
        """Connections of these streams with all other ranks. All ranks listen before any of them publishes its port, so
        there is no order in which to connect: each connects to those below it while its acceptor admits those above."""
        if self._acceptor is None:  # a rank alone
            return {}
        made: dict[Key, socket.socket] = {}
        above = {(peer, stream) for peer in range(self.rank + 1, self.size) for stream in streams}
        try:
            for stream in sorted(streams):
                for peer in range(self.rank):
                    made[peer, stream] = self._connect(self.rank_infos[peer], stream)
            made |= self._acceptor.take(above, Patience(self.store.deadline, lambda: self._look_after(above)))
            for (peer, stream), connection in made.items():
                self._tune(peer, stream, connection)
        except BaseException as error:
            # Closed only when the others can read why.
            self.connections.data += [(peer, connection) for (peer, _), connection in made.items()]
            if isinstance(error, TimeoutError) and not isinstance(error, NarrowgaugeError):
                missing = [self.store.names[peer] for peer in self._acceptor.missing(above)]
                strangers = self._acceptor.strangers
                where = self.store.names[self.rank]
                raise RendezvousError(f"{where}: {', '.join(missing)} did not connect{strangers}") from None
            raise
        return made

    def _connect(self, peer: RankInfo, stream: int) -> socket.socket:
        """An authenticated connection to a peer.

        Raises:
            RendezvousError: the peer cannot be reached, or refused; names both ends.
        """
        own = self.rank_infos[self.rank]
        addresses, source = _route(own, peer, stream)
        hello = Hello(self.store.group, self.store.generation, self.rank, peer.rank, stream)

        def greet(connection: socket.socket, patience: Patience) -> None:
            introduce(connection, hello, self._secret, patience)

        try:
            return connecting.connect(addresses, peer.port, self.patience, source, greet)
        except Refused as refusal:
            raise RendezvousError(f"{own.describe()} connected to {peer.describe()}: {refusal}") from None
        except connecting.Unreached as error:
            raise RendezvousError(
                f"{own.describe()} cannot reach {peer.describe()}: {error}; "
                "check that no firewall is between them, or name a common network by interface="
            ) from None

    def _look_after(self, above: set[Key]) -> None:
        """While others are to connect: has one ended before it had a connection by which that would be known? It
        listened before it said where, and does so until it has its connections."""
        self.store.check()
        if self._acceptor is None or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_S
        for peer in self._acceptor.missing(above):
            if peer not in self.connections.control and self._is_gone(self.rank_infos[peer]):
                self.store.check(patient=True)
                raise RendezvousError(
                    f"{self.store.names[self.rank]}, forming group {self.store.group}: {self.store.names[peer]} "
                    "does not listen any more, so its process has ended"
                )

    def _is_gone(self, peer: RankInfo) -> bool:
        """Whether each address of a rank refuses connections, which a rank of this group cannot do while it lives."""
        addresses, _ = _route(self.rank_infos[self.rank], peer, 0)
        return connecting.is_refused(addresses, peer.port, Patience(time.monotonic() + 1.0))

    def _tune(self, peer: int, stream: int, connection: socket.socket) -> None:
        """Set the options of its use, control connections and streams apart."""
        tcp.tune(connection)
        connection.setblocking(True)
        if stream == CONTROL_STREAM:
            tcp.tune_control(connection)
        own = self.rank_infos[self.rank]
        tcp.tune_congestion(connection, self.rank_infos[peer].machine == own.machine)

    def _endings(self) -> Mapping[int, Ending]:
        """Who has left this group while it forms."""
        found = {peer: ending(connection) for peer, connection in self.connections.control.items()}
        return {peer: end for peer, end in found.items() if end is not None}

    def _failed(self, error: BaseException) -> BaseException:
        """Report an error to the other ranks, and close everything; the error to raise here, which is that of the rank
        that failed first."""
        if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
            error = no_descriptors(error, self.store.names[self.rank])
        with contextlib.suppress(NarrowgaugeError):
            if isinstance(error, RendezvousError):
                error = self.store.failure() or error
        self.store.announce(error)
        channel = ControlChannel(self.connections.control)
        channel.send_abort(type(error).__name__, self.rank, self.store.last_words(error))
        self.connections.close()
        return error

    def _stop_listening(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
            if self._acceptor.strangers.count:
                logger.warning("group %s has formed%s", self.store.group, self._acceptor.strangers)
            self._acceptor = None


def _route(own: RankInfo, peer: RankInfo, stream: int) -> tuple[list[str], str | None]:
    """Addresses to try for a stream, and the own address to connect from (None: the kernel's choice)."""
    if own.machine == peer.machine:
        return list(peer.addresses), None
    # Another machine's loopback address would lead back to this one.
    addresses = [address for address in peer.addresses if not tcp.is_loopback(address)]
    if peer.interfaces > 1:
        addresses = [addresses[stream % peer.interfaces]]
    return addresses, own.addresses[stream % own.interfaces] if own.interfaces > 1 else None
