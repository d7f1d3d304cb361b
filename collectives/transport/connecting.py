"""How connections are made: non-blocking sockets, and a patience that ends early where waiting is in vain.

Nothing here waits in one piece: about ten times a second the caller's check may say that another rank has failed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from collectives.errors import RendezvousError

SLICE_S, GREETING_S, REFUSED_S = 0.1, 10.0, 3.0
LISTEN_ATTEMPTS = 20
_ANY_ADDRESS = "*"
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
MAX_DESCRIPTORS = 1 << 20  # what "unlimited" is raised to; the kernel's default for fs.nr_open


class Unreached(RendezvousError):
    """No address of a peer answered as it should."""


def _no_check() -> None:
    """Nothing could tell that waiting is in vain."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a peer.

    Attributes:
        deadline: until when; time.monotonic, seconds.
        check: called about ten times a second; raises when waiting is in vain.
    """

    deadline: float
    check: Callable[[], None] = _no_check

    def at_most(self, seconds: float) -> Patience:
        """A part of it that ends sooner."""
        return replace(self, deadline=min(self.deadline, time.monotonic() + seconds))

    def wait(self, connection: socket.socket, events: int) -> None:
        """Return when a connection is readable (select.POLLIN) or writable (select.POLLOUT).

        Raises:
            TimeoutError: it was not in time.
        """
        poll = select.poll()
        poll.register(connection, events)
        while not poll.poll(1000 * max(0.0, min(SLICE_S, self.deadline - time.monotonic()))):
            self.check()
            if time.monotonic() >= self.deadline:
                raise TimeoutError(errno.ETIMEDOUT, "no answer in time")


def listen(addresses: Sequence[str]) -> list[socket.socket]:
    """Sockets that listen at these addresses of this machine, all at one free port; [] stands for every address."""
    for attempt in range(LISTEN_ATTEMPTS):
        servers: list[socket.socket] = []
        try:
            for address in addresses or [_ANY_ADDRESS]:
                port = servers[0].getsockname()[1] if servers else 0
                servers.append(_listen(address, port))
            return servers
        except OSError as error:
            for server in servers:
                server.close()
            # The port that was free at the first address may be taken at the next.
            if error.errno != errno.EADDRINUSE or attempt == LISTEN_ATTEMPTS - 1:
                raise
    raise AssertionError


def _listen(address: str, port: int) -> socket.socket:
    dual = address == _ANY_ADDRESS and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or ":" in address else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        server.bind((address, port) if address != _ANY_ADDRESS else ("::" if dual else "0.0.0.0", port))
        server.listen(1024)
    except BaseException:
        server.close()
        raise
    return server


def _greet_nobody(connection: socket.socket, patience: Patience) -> None:
    """A connection is enough."""


def connect(
    addresses: Sequence[str],
    port: int,
    patience: Patience,
    source: str | None = None,
    greet: Callable[[socket.socket, Patience], None] = _greet_nobody,
) -> socket.socket:
    """Connect to the first address where the right one answers, trying them in turn until it does.

    Args:
        source: address of this machine to connect from; None leaves that to the kernel.
        greet: finds out on a new, non-blocking connection whether it is the right one; an OSError says that it isn't.

    Raises:
        Unreached: none did; gives the error of each address. Sooner than at the deadline if for some seconds all
            addresses refuse, as they do when nobody listens any more.
        OSError: this process has no more file descriptors.
    """
    problems: dict[str, OSError] = {}
    refused_since: float | None = None
    pause_s = 0.02
    if not addresses:
        raise Unreached("it advertised no address that another machine can reach")
    while True:
        for address in addresses:
            try:
                # Several addresses share the time, so that a dead first one doesn't use it up.
                connection = _connect(address, port, patience.at_most(5.0 if len(addresses) > 1 else 1e9), source)
            except OSError as error:
                if error.errno in NO_DESCRIPTORS:
                    raise
                problems[address] = error
                continue
            try:
                greet(connection, patience.at_most(GREETING_S if len(addresses) > 1 else 1e9))
                return connection
            except OSError as error:
                connection.close()
                problems[address] = error
            except BaseException:
                connection.close()
                raise
        patience.check()
        is_refused = all(error.errno == errno.ECONNREFUSED for error in problems.values())
        refused_since = (refused_since or time.monotonic()) if is_refused else None
        tried = "; ".join(f"{address}:{port}: {error.strerror or error}" for address, error in problems.items())
        if refused_since is not None and time.monotonic() > refused_since + REFUSED_S:
            raise Unreached(f"nobody listens there any more ({tried}), so its process has ended")
        if time.monotonic() + pause_s >= patience.deadline:
            raise Unreached(f"could not connect ({tried})")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.5)


def is_refused(addresses: Sequence[str], port: int, patience: Patience) -> bool:
    """Whether the kernels at all of these addresses say that nobody listens at the port."""
    for address in addresses:
        try:
            _connect(address, port, patience, None).close()
        except ConnectionRefusedError:
            continue
        except OSError:
            return False
        return False
    return bool(addresses)


def _connect(address: str, port: int, patience: Patience, source: str | None) -> socket.socket:
    """A non-blocking connection to one address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if source is not None and (":" in source) == (":" in address):
            connection.bind((source, 0))
        number = connection.connect_ex((address, port))
        if number == errno.EINPROGRESS:
            patience.wait(connection, select.POLLOUT)
            number = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        # Where nobody listens on a port of those that the kernel gives out, a connection may be to itself.
        if not number and connection.getsockname() == connection.getpeername():
            number = errno.ECONNREFUSED
        if number:
            raise OSError(number, os.strerror(number))
    except BaseException:
        connection.close()
        raise
    return connection


def send_within(connection: socket.socket, payload: bytes, patience: Patience) -> None:
    """Send on a non-blocking connection.

    Raises:
        OSError: the peer closed, or took too long.
    """
    while payload:
        try:
            payload = payload[connection.send(payload) :]
        except BlockingIOError:
            patience.wait(connection, select.POLLOUT)


def receive_within(connection: socket.socket, num_bytes: int, patience: Patience) -> bytes:
    """Receive from a non-blocking connection.

    Raises:
        OSError: the peer closed, or took too long.
    """
    data = b""
    while len(data) < num_bytes:
        try:
            more = connection.recv(num_bytes - len(data))
        except BlockingIOError:
            patience.wait(connection, select.POLLIN)
            continue
        if not more:
            raise ConnectionResetError(errno.ECONNRESET, f"the peer closed after {len(data)} of {num_bytes} bytes")
        data += more
    return data


def receive_frame_within(connection: socket.socket, limit: int, patience: Patience) -> bytes:
    """As `receive_frame`, from a non-blocking connection."""
    (length,) = struct.unpack("<I", receive_within(connection, 4, patience))
    if length > limit:
        raise OSError(f"a frame of {length} bytes where at most {limit} are allowed")
    return receive_within(connection, length, patience)


def raise_descriptor_limit() -> None:
    """Let this process open as many files as it may: the soft limit is often 1024, and a group needs a few for each
    pair of ranks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def descriptor_limit(error: OSError) -> str:
    """What EMFILE or ENFILE means here, and what to do."""
    if error.errno == errno.ENFILE:
        return "this machine has too many open files (ENFILE); raise the sysctl fs.file-max"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"too many open files (EMFILE): this process may have {soft} at once (RLIMIT_NOFILE; the hard limit is "
        f"{hard}); raise it with `ulimit -n 65536` before the start, LimitNOFILE= for a service, or --ulimit nofile= "
        "for a container"
    )
