"""Both ends of a connection prove that they hold the group's token before either trusts what the other sends.

    acceptor -> connector   a nonce
    connector -> acceptor   a frame: HMAC(token, "connector" | session | transcript), a nonce, hello (JSON)
    acceptor -> connector   a frame: HMAC(token, "acceptor" | session | transcript | refusal), refusal (text, mostly "")

    transcript = SHA-256(the acceptor's nonce | the connector's nonce | hello)

The connector proves itself first: a stranger who connects sees 32 random bytes, then the end. The token itself never
crosses the wire, nonces make a recorded exchange useless, and the two roles sign different texts, so that neither end
can be made to sign what proves the other. Hello names both ranks, and the session is the digest of what all ranks of
the group said when they came, fresh nonces among it: a proof for one pair of ranks, group or start holds for no other.

The acceptor's half does no I/O: bytes in, bytes out. So one thread can serve many strangers, and a test any bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
from dataclasses import asdict, dataclass

from collectives.errors import RendezvousError
from collectives.transport.connecting import Patience, receive_frame_within, receive_within, send_within
from collectives.transport.tcp import frame

PROTOCOL = "narrowgauge/3"
CONTROL_STREAM = 0  # streams 1 and up carry slices
MESSAGE_STREAM = 1000  # above any number of those
NONCE_BYTES, MAC_BYTES, FRAME_LIMIT = 32, 32, 1024


@dataclass(frozen=True)
class Hello:
    """What a connection is for: the group and generation, who connects to whom, which of their streams."""

    group: str
    generation: int
    rank: int
    peer: int
    stream: int
    protocol: str = PROTOCOL


@dataclass(frozen=True)
class Secret:
    """What both ends must know: the group's token, and the digest of who came to this meeting."""

    token: bytes
    session: bytes

    def proof(self, role: bytes, transcript: bytes, text: bytes = b"") -> bytes:
        session = hashlib.sha256(self.session).digest()
        return hmac.digest(self.token, role + session + transcript + text, "sha256")

    def __repr__(self) -> str:
        return "Secret(...)"


class Refused(RendezvousError):
    """The other end does not hold the token, or asks for something else; the connection must be closed.

    Attributes:
        answer: bytes to send before that; none for a stranger.
    """

    def __init__(self, message: str, answer: bytes = b"") -> None:
        super().__init__(message)
        self.answer = answer


def introduce(connection: socket.socket, hello: Hello, secret: Secret, patience: Patience) -> None:
    """Authenticate a non-blocking connection that this end made.

    Raises:
        Refused: the peer, who holds the token, refused this end.
        OSError: the other end closed, took too long, or does not hold the token.
    """
    first, nonce = json.dumps(asdict(hello)).encode(), secrets.token_bytes(NONCE_BYTES)
    transcript = _transcript(receive_within(connection, NONCE_BYTES, patience), nonce, first)
    send_within(connection, frame(secret.proof(b"connector", transcript) + nonce + first), patience)
    answer = receive_frame_within(connection, FRAME_LIMIT, patience)
    proof, refusal = answer[:MAC_BYTES], answer[MAC_BYTES:]
    if not hmac.compare_digest(proof, secret.proof(b"acceptor", transcript, refusal)):
        raise ConnectionError("what answers there does not hold this group's token")
    if refusal:
        raise Refused(refusal.decode(errors="replace"))


class Admission:
    """The acceptor's half of one handshake: first send `nonce`, then pass on what is received.

    Args:
        rank: this one, to which the other end should want to connect.
    """

    def __init__(self, group: str, generation: int, rank: int, secret: Secret) -> None:
        self.nonce = secrets.token_bytes(NONCE_BYTES)
        self._wanted = (PROTOCOL, group, generation, rank)
        self._secret, self._received, self._transcript = secret, b"", b""

    def receive(self, data: bytes) -> Hello | None:
        """What the connection is for, once all of it is here and its sender has proved the token; None: more is needed.

        Raises:
            Refused: too many bytes, no valid hello, no proof of the token, or another group, generation, protocol or
                rank.
        """
        self._received += data
        if len(self._received) < 4:
            return None
        length = int.from_bytes(self._received[:4], "little")
        if not MAC_BYTES + NONCE_BYTES < length <= FRAME_LIMIT:
            raise Refused(f"it announced {length} bytes where a hello has at most {FRAME_LIMIT}")
        payload = self._received[4:]
        if len(payload) > length:
            raise Refused("it sent more than a hello")
        if len(payload) < length:
            return None
        proof, nonce = payload[:MAC_BYTES], payload[MAC_BYTES:][:NONCE_BYTES]
        first = payload[MAC_BYTES + NONCE_BYTES :]
        self._transcript = _transcript(self.nonce, nonce, first)
        if not hmac.compare_digest(proof, self._secret.proof(b"connector", self._transcript)):
            raise Refused("it does not hold this group's token")
        hello = self._read(first)
        if (hello.protocol, hello.group, hello.generation, hello.peer) != self._wanted:
            protocol, group, generation, rank = self._wanted
            raise self.refusal(
                f"it wants rank {hello.peer} of {hello.group} generation {hello.generation} ({hello.protocol}), "
                f"not rank {rank} of {group} generation {generation} ({protocol})"
            )
        return hello

    def answer(self, refusal: str = "") -> bytes:
        """The last message, for an end that has proved the token: that it is accepted, or why not."""
        text = refusal.encode()[: FRAME_LIMIT - MAC_BYTES]
        return frame(self._secret.proof(b"acceptor", self._transcript, text) + text)

    def refusal(self, reason: str) -> Refused:
        """An exception whose answer says why."""
        return Refused(reason, self.answer(reason))

    def _read(self, first: bytes) -> Hello:
        """The hello, once its sender has proved the token; a wrong one then is another version's."""
        try:
            fields = json.loads(first)
            hello = Hello(**{name: fields[name] for name in Hello.__dataclass_fields__})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self.refusal(f"its hello cannot be read ({error!r})") from None
        numbers = (hello.generation, hello.rank, hello.peer, hello.stream)
        texts = (hello.group, hello.protocol)
        if not all(type(each) is int for each in numbers) or not all(isinstance(each, str) for each in texts):
            raise self.refusal("its hello has fields of wrong types")
        return hello


def _transcript(acceptor: bytes, connector: bytes, hello: bytes) -> bytes:
    """What both proofs are about. The nonces have a fixed length, so no two exchanges give the same bytes."""
    return hashlib.sha256(acceptor + connector + hello).digest()
