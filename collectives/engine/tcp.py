"""TCP sockets as the engine wants them: addresses that peers can reach, options that find dead hosts in seconds."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Sequence

import psutil

from collectives.errors import RendezvousError

# A silent control connection is probed after 5 s, then every 2 s, and given up after 4 probes, so a host that lost
# power or its link is known dead in about 13 s. Streams have no such limit: the kernel applies TCP_USER_TIMEOUT to a
# closed window, too, and a peer that does something else for a while and reads nothing is well.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 5, 2, 4
USER_TIMEOUT_MS = 1000 * (KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_PROBES)


def listen(addresses: Sequence[str]) -> socket.socket:
    """A listening socket at a free port: on the one address, or on all IPv4 addresses if there are several."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((addresses[0] if len(addresses) == 1 else "0.0.0.0", 0))
    server.listen(1024)
    return server


def connect(addresses: Sequence[str], port: int, deadline: float) -> socket.socket:
    """Connect to the first address that answers before `deadline` (time.monotonic, seconds).

    Raises:
        RendezvousError: none did; says what each said.
    """
    said: dict[str, str] = {}
    pause_s = 0.02
    if not addresses:
        raise RendezvousError("it told no address that can be reached from another machine")
    while True:
        for address in addresses:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            try:
                # Several addresses share the time, so that a dead first one doesn't use it up.
                each_s = min(left_s, 5.0) if len(addresses) > 1 else left_s
                return socket.create_connection((address, port), timeout=each_s)
            except OSError as error:
                said[address] = error.strerror or str(error)
        if time.monotonic() + pause_s >= deadline:
            tried = "; ".join(f"{address}:{port}: {text}" for address, text in said.items())
            raise RendezvousError(f"could not connect ({tried})")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.5)


def tune(connection: socket.socket) -> None:
    """For every connection: what is written leaves at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def tune_control(connection: socket.socket) -> None:
    """For the connection on which a dead host must be noticed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def tune_within_machine(connection: socket.socket) -> None:
    """Within a machine there is no path to pace or probe; BBR, where it is the default, does both, and costs speed."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def own_addresses(interface: str | None, towards: str | None) -> list[str]:
    """IPv4 addresses of this machine at which peers may find this rank, best first.

    Args:
        interface: take this network interface's address and no other.
        towards: host name or address of the rendezvous store; the address that reaches it comes first.

    Raises:
        RendezvousError: no such interface, or it has no IPv4 address.
    """
    table = {
        name: [entry.address for entry in entries if entry.family == socket.AF_INET]
        for name, entries in psutil.net_if_addrs().items()
    }
    if interface is not None:
        if not table.get(interface):
            have = ", ".join(sorted(name for name in table if table[name]))
            raise RendezvousError(f"interface {interface!r} is not here or has no IPv4 address; there are: {have}")
        return table[interface]
    stats = psutil.net_if_stats()
    up = [name for name in sorted(table) if name in stats and stats[name].isup]
    addresses = [address for name in up for address in table[name] if not address.startswith("127.")]
    reaching = _address_towards(towards) if towards else None
    if reaching in addresses:
        addresses.remove(reaching)
        addresses.insert(0, reaching)
    return [*addresses, "127.0.0.1"]


def _address_towards(host: str) -> str | None:
    """The address from which this machine would speak to `host`; connecting a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def machine_identity() -> str:
    """Equal for ranks that share a kernel and a network: boot id and network namespace."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot_id = file.read().strip()
    return f"{boot_id}/{os.stat('/proc/self/ns/net').st_ino}"


def send_frame(connection: socket.socket, payload: bytes) -> None:
    """Four bytes of length, then the payload."""
    connection.sendall(struct.pack("<I", len(payload)) + payload)


def receive_frame(connection: socket.socket, limit: int) -> bytes:
    """A frame of at most `limit` bytes.

    Raises:
        OSError: the peer closed, timed out, or announced more than `limit`.
    """
    (length,) = struct.unpack("<I", _receive_exactly(connection, 4))
    if length > limit:
        raise OSError(f"a frame of {length} bytes where at most {limit} are allowed")
    return _receive_exactly(connection, length)


def _receive_exactly(connection: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        more = connection.recv(num_bytes - len(data))
        if not more:
            raise OSError(f"the peer closed after {len(data)} of {num_bytes} bytes")
        data += more
    return data
