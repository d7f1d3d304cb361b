"""Options of sockets."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from collectives.transport import tcp


def congestion_control(connection: socket.socket) -> bytes:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


def smoothed_round_trip_us(connection: socket.socket) -> int:
    (microseconds,) = struct.unpack_from("=I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 68)
    return int(microseconds)


def test_a_peer_that_was_slow_once_does_not_make_a_short_path_long() -> None:
    """An acknowledgement that the peer's kernel delays, by 40 ms, counts in the smoothed round trip for a while."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        accepted, _ = server.accept()
        with accepted:
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
            except OSError:
                pytest.skip("this kernel has no BBR")
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            connection.send(b"x")
            time.sleep(0.1)
            if smoothed_round_trip_us(connection) < tcp.SHORT_PATH_US:
                pytest.skip("this kernel did not delay its acknowledgement")
            tcp.tune_congestion(connection, within_machine=False)
            assert congestion_control(connection) == b"cubic"
