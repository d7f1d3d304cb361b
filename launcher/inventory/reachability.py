"""Whether something listens at an address, found out before Ray is asked to connect, which would retry for minutes."""

from __future__ import annotations

import socket

TIMEOUT_S = 5.0


def check_listening(address: str) -> None:
    """Connect to host:port and close the connection again.

    Raises:
        OSError: nothing answers there within `TIMEOUT_S`.
        ValueError: there is no port in it.
    """
    host, _, port = address.rstrip("/").rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S).close()
