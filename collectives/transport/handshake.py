"""Both ends of a connection prove that they hold the group's token before either trusts what the other sends.

    connector -> acceptor   hello: what the connection is for (JSON) and a nonce
    acceptor -> connector   a nonce of its own, HMAC(token, "acceptor" | hello | both nonces)
    connector -> acceptor   HMAC(token, "connector" | hello | both nonces)
    acceptor -> connector   one byte: accepted

The token itself never crosses the wire, and nonces make a recorded exchange useless. The two roles sign different
texts, so that neither end can be made to sign what proves the other.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
from dataclasses import asdict, dataclass

from collectives.errors import RendezvousError
from collectives.transport.tcp import receive_frame, send_frame

PROTOCOL = "narrowgauge/2"
CONTROL_STREAM = 0  # streams 1 and up carry slices
MESSAGE_STREAM = 1000  # above any number of those
_NONCE_BYTES, _MAC_BYTES, _HELLO_LIMIT = 32, 32, 4096
_ACCEPTED = b"+"


@dataclass(frozen=True)
class Hello:
    """What a connection is for: the group and generation, who connects, which of its streams."""

    group: str
    generation: int
    rank: int
    stream: int
    protocol: str = PROTOCOL


class Refused(RendezvousError):
    """The other end does not hold the token, or asks for something else; the connection must be closed."""


def introduce(connection: socket.socket, hello: Hello, token: bytes) -> None:
    """Authenticate a connection that this end made.

    Raises:
        Refused: the peer does not hold the token, or refused this end.
    """
    first = json.dumps(asdict(hello)).encode()
    nonce = secrets.token_bytes(_NONCE_BYTES)
    try:
        send_frame(connection, first)
        send_frame(connection, nonce)
        answer = receive_frame(connection, _NONCE_BYTES + _MAC_BYTES)
        transcript = first + nonce + answer[:_NONCE_BYTES]
        if not hmac.compare_digest(answer[_NONCE_BYTES:], _mac(token, b"acceptor", transcript)):
            raise Refused("the peer does not hold this group's token")
        send_frame(connection, _mac(token, b"connector", transcript))
        if receive_frame(connection, 1) != _ACCEPTED:
            raise Refused("the peer refused the connection")
    except OSError as error:
        raise Refused(
            f"the peer broke off the handshake ({error}); usual causes: another token, or a port of something else"
        ) from None


def admit(connection: socket.socket, group: str, generation: int, token: bytes) -> Hello:
    """Authenticate a connection that the other end made.

    Returns:
        What it is for.

    Raises:
        Refused: no valid hello, another group, generation or protocol, or no proof of the token.
    """
    try:
        first = receive_frame(connection, _HELLO_LIMIT)
        nonce = receive_frame(connection, _NONCE_BYTES)
        own_nonce = secrets.token_bytes(_NONCE_BYTES)
        transcript = first + nonce + own_nonce
        send_frame(connection, own_nonce + _mac(token, b"acceptor", transcript))
        if not hmac.compare_digest(receive_frame(connection, _MAC_BYTES), _mac(token, b"connector", transcript)):
            raise Refused("it does not hold this group's token")
        hello = _read(first)
        if (hello.group, hello.generation, hello.protocol) != (group, generation, PROTOCOL):
            raise Refused(
                f"it wants {hello.group} generation {hello.generation} ({hello.protocol}), "
                f"not {group} generation {generation}"
            )
        send_frame(connection, _ACCEPTED)
    except OSError as error:
        raise Refused(f"it broke off the handshake ({error})") from None
    return hello


def _read(first: bytes) -> Hello:
    """The hello, once its sender has proved the token; a wrong one then is another version's."""
    try:
        fields = json.loads(first)
        return Hello(
            group=str(fields["group"]),
            generation=int(fields["generation"]),
            rank=int(fields["rank"]),
            stream=int(fields["stream"]),
            protocol=str(fields["protocol"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"its hello cannot be read ({error!r})") from None


def _mac(token: bytes, role: bytes, transcript: bytes) -> bytes:
    return hmac.digest(token, role + hashlib.sha256(transcript).digest(), "sha256")
