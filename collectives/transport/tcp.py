"""TCP sockets as the engine wants them: addresses that peers can reach, options that find dead hosts in seconds."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import psutil

from collectives.errors import RendezvousError

# A silent control connection is probed after 5 s, then every 2 s, and given up after 4 probes, so a host that lost
# power or its link is known dead in about 13 s. Streams have no such limit: the kernel applies TCP_USER_TIMEOUT to a
# closed window, too, and a peer that computes for a while and reads nothing is healthy.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 5, 2, 4
SHORT_PATH_US = 2000
LOOPBACK = "127.0.0.1"
MIN_IN_FLIGHT, MAX_LIMIT = 16 * 1024, 64 * 1024
_SO_MAX_PACING_RATE, _SO_NETNS_COOKIE = 47, 71
# In struct tcp_info of linux/tcp.h, which only grows at its end.
_ACKNOWLEDGED_AT, _MIN_RTT_AT, _BUSY_AT = 120, 148, 168
USER_TIMEOUT_MS = 1000 * (KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_PROBES)


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


def tune_congestion(connection: socket.socket, within_machine: bool) -> None:
    """Where BBR is the default it paces what it sends, which costs speed and processor time on short paths: "reno"
    within a machine, where there is no path to probe, and "cubic" where a round trip takes less than SHORT_PATH_US.

    That is the shortest one so far. The kernel's smoothed time would leave it to chance: a peer that was busy when the
    connection was made, or an acknowledgement that it delayed, looks like a long path, and the connection would keep
    BBR for good."""
    if within_machine or _shortest_round_trip_us(connection) < SHORT_PATH_US:
        with contextlib.suppress(OSError):
            wanted = b"reno" if within_machine else b"cubic"
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, wanted)


def _shortest_round_trip_us(connection: socket.socket) -> int:
    """The shortest of late that the kernel has measured, in microseconds; 2**32 - 1 if none."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MIN_RTT_AT + 4)
    (microseconds,) = struct.unpack_from("=I", info, _MIN_RTT_AT)
    return int(microseconds)


def interface_addresses(interfaces: str | None) -> list[str]:
    """The address of each named interface, IPv4 if it has one; `interfaces` is a name, or several with commas between.
    [] for None.

    Raises:
        RendezvousError: no such interface, or it has no address; names those that there are.
    """
    table = _addresses_by_interface()
    found = []
    for name in [word.strip() for word in interfaces.split(",")] if interfaces else []:
        if not table.get(name):
            have = ", ".join(sorted(each for each in table if table[each]))
            raise RendezvousError(f"interface {name!r} is not here or has no address; there are: {have}")
        found.append(table[name][0])
    return found


def own_addresses(towards: str | None) -> list[str]:
    """Addresses of this machine at which peers may find this rank, best first: IPv4, then IPv6, then loopback.

    Args:
        towards: host name or address of the rendezvous store; the address that reaches it comes first.
    """
    table, stats = _addresses_by_interface(), psutil.net_if_stats()
    up = [name for name in sorted(table) if name in stats and stats[name].isup]
    addresses = [address for name in up for address in table[name] if not is_loopback(address)]
    addresses.sort(key=lambda address: ":" in address)
    reaching = address_towards(towards) if towards else None
    if reaching in addresses:
        addresses.remove(reaching)
        addresses.insert(0, reaching)
    return [*addresses, LOOPBACK]


def is_loopback(address: str) -> bool:
    """Whether it leads back to the machine that connects to it."""
    return address.startswith("127.") or address == "::1"


def _addresses_by_interface() -> dict[str, list[str]]:
    """IPv4 first. Not those of IPv6 that hold on one link only: they mean nothing without its name."""
    return {
        name: [
            *(entry.address for entry in entries if entry.family == socket.AF_INET),
            *(e.address for e in entries if e.family == socket.AF_INET6 and not e.address.lower().startswith("fe80")),
        ]
        for name, entries in psutil.net_if_addrs().items()
    }


def address_towards(host: str) -> str | None:
    """The address from which this machine would speak to `host`; connecting a UDP socket sends nothing."""
    try:
        found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, _, _, where in found:
        with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    return None


def machine_identity() -> str:
    """Equal for ranks that share a kernel and a network: boot id and network namespace.

    A namespace is named by its cookie, which is never used again, or by its inode number where the kernel has no
    cookies (before Linux 5.14).
    """
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot_id = file.read().strip()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            (namespace,) = struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))
        except OSError:
            namespace = f"inode {os.stat('/proc/self/ns/net').st_ino}"
    return f"{boot_id}/{namespace}"


def pace(connection: socket.socket, bytes_per_s: float) -> None:
    """Have the kernel let no more than `bytes_per_s` bytes per second out of this connection. Needs no privilege."""
    connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("@Q", int(bytes_per_s)))


def limit_in_flight(connection: socket.socket, num_bytes: float) -> None:
    """Let a connection over a slow link have little in flight, at least MIN_IN_FLIGHT.

    What more it could have would only stand in the link's queue and be dropped there; a slice that waits for a
    retransmission keeps the result from coming down, and idle time of a link that is busy in both directions is lost.
    Where the kernel's own limit is no larger it is left alone.
    """
    if num_bytes <= MAX_LIMIT:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, int(max(MIN_IN_FLIGHT, num_bytes)))


def sent_so_far(connection: socket.socket) -> tuple[int, float]:
    """What the kernel counts for a connection since it was made.

    Returns:
        Bytes that the peer has acknowledged, and seconds during which some were in flight, without those in which the
        peer's program left no room for more (tcpi_bytes_acked, tcpi_busy_time - tcpi_rwnd_limited; Linux 4.10).
    """
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BUSY_AT + 16)
    (acknowledged,) = struct.unpack_from("=Q", info, _ACKNOWLEDGED_AT)
    busy_us, held_up_us = struct.unpack_from("=QQ", info, _BUSY_AT)
    return acknowledged, max(0, busy_us - held_up_us) / 1e6


def max_bytes_in_flight() -> int:
    """How many bytes one connection may have in flight: the limit to which the kernel lets a send buffer grow."""
    with open("/proc/sys/net/ipv4/tcp_wmem") as file:
        return int(file.read().split()[2])


def frame(payload: bytes) -> bytes:
    """Four bytes of length, then the payload."""
    return struct.pack("<I", len(payload)) + payload


def send_frame(connection: socket.socket, payload: bytes) -> None:
    """Four bytes of length, then the payload."""
    connection.sendall(frame(payload))


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
