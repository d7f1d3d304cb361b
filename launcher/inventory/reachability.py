"""Whether something listens at an address, found out before Ray is asked to connect, which would retry for minutes and
print lines of its own meanwhile."""

from __future__ import annotations

import os
import socket

TIMEOUT_S = 5.0
# What a client of HTTP/2 says first, with an empty frame of settings. A server's first frame is one of settings, too.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_FRAME_BYTES, _KIND, _SETTINGS = 9, 3, 4


def check_listening(address: str) -> None:
    """Connect to host:port and close the connection again.

    Raises:
        OSError: nothing answers there within `TIMEOUT_S`.
        ValueError: there is no port in it.
    """
    _connected(address).close()


def check_head(address: str) -> None:
    """As `check_listening`, and what listens speaks as the head of a Ray cluster does: gRPC, in HTTP/2.

    Raises:
        OSError: nothing listens there, or it is no such head, or one that hangs.
    """
    if os.environ.get("RAY_USE_TLS") == "1":  # then it says nothing to a client without a certificate
        check_listening(address)
        return
    with _connected(address) as connection:
        try:
            connection.sendall(_PREFACE)
            frame = b""
            while len(frame) < _FRAME_BYTES and (more := connection.recv(_FRAME_BYTES - len(frame))):
                frame += more
        except TimeoutError:
            raise TimeoutError(f"it accepts connections, but does not answer within {TIMEOUT_S:g} s") from None
        except ConnectionError:
            frame = b""
    if len(frame) < _FRAME_BYTES or frame[_KIND] != _SETTINGS:
        raise ConnectionError("what listens there is not the head of a Ray cluster")


def _connected(address: str) -> socket.socket:
    host, _, port = address.rstrip("/").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S)
