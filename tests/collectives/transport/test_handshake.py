"""The handshake, and signatures of what stands in the store: nothing but the right bytes is believed."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import replace

import pytest

from collectives.errors import RendezvousError
from collectives.transport import control
from collectives.transport.connecting import Patience
from collectives.transport.handshake import FRAME_LIMIT, Admission, Hello, Refused, Secret, introduce
from collectives.transport.tcp import frame
from collectives.transport.watched_store import WatchedStore
from tests.collectives.engine.group import MemoryStore

TOKEN = "0123456789abcdef"
SECRET = Secret(TOKEN.encode(), b"this meeting")
HELLO = Hello("group", 0, 1, 0, 1)


def exchange(hello: Hello, knocks: Secret, opens: Secret = SECRET) -> tuple[Hello | None, str, str]:
    """A handshake: what the acceptor admitted, what it refused, what the connector was left with."""
    near, far = socket.socketpair()
    refused, left = "", ""
    admitted: Hello | None = None

    def knock() -> str:
        try:
            introduce(near, hello, knocks, Patience(time.monotonic() + 100))
        except (Refused, OSError) as error:
            return str(error)
        return ""

    near.setblocking(False)
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(knock()))
    thread.start()
    admission = Admission("group", 0, 0, opens)
    with near:
        with far:
            far.sendall(admission.nonce)
            try:
                while admitted is None:
                    admitted = admission.receive(far.recv(FRAME_LIMIT + 5))
                far.sendall(admission.answer())
            except Refused as refusal:
                refused = str(refusal)
                far.sendall(refusal.answer)
        thread.join()
    (left,) = outcome
    return admitted, refused, left


def test_both_ends_are_content_with_each_other() -> None:
    assert exchange(HELLO, SECRET) == (HELLO, "", "")


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        (replace(HELLO, group="other"), "it wants rank 0 of other generation 0"),
        (replace(HELLO, generation=3), "it wants rank 0 of group generation 3"),
        (replace(HELLO, protocol="narrowgauge/0"), "narrowgauge/0"),
        (replace(HELLO, peer=2), "it wants rank 2 of group"),
    ],
)
def test_a_peer_that_wants_something_else_is_told(hello: Hello, words: str) -> None:
    admitted, refused, left = exchange(hello, SECRET)
    assert admitted is None
    assert words in refused
    assert words in left


@pytest.mark.parametrize("knocks", [Secret(b"wrong", b"this meeting"), Secret(TOKEN.encode(), b"yesterday's meeting")])
def test_a_stranger_is_told_nothing(knocks: Secret) -> None:
    admitted, refused, left = exchange(HELLO, knocks)
    assert (admitted, refused) == (None, "it does not hold this group's token")
    assert "closed after 0 of 4 bytes" in left


def test_an_acceptor_without_the_token_is_not_believed() -> None:
    """It cannot even reflect the connector's own proof."""
    near, far = socket.socketpair()
    near.setblocking(False)

    def reflect() -> None:
        far.sendall(b"\0" * 32)
        far.sendall(far.recv(4096))

    thread = threading.Thread(target=reflect)
    with near, far:
        thread.start()
        with pytest.raises(OSError, match="what answers there does not hold this group's token"):
            introduce(near, HELLO, SECRET, Patience(time.monotonic() + 100))
        thread.join()


def test_a_recorded_hello_is_refused_the_next_time() -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    first, again = Admission("group", 0, 0, SECRET), Admission("group", 0, 0, SECRET)

    def knock() -> None:
        with contextlib.suppress(OSError):
            introduce(near, HELLO, SECRET, Patience(time.monotonic() + 100))

    thread = threading.Thread(target=knock)
    with near, far:
        thread.start()
        far.sendall(first.nonce)
        recorded = far.recv(4096)
        assert first.receive(recorded) == HELLO
        with pytest.raises(Refused, match="does not hold"):
            again.receive(recorded)
        far.close()
        thread.join()


def writer(token: str = TOKEN, group: str = "group", generation: int = 0, meeting: str = "a") -> WatchedStore:
    """Rank 1's view of the store."""
    store = WatchedStore(MemoryStore(), 1, 2, group, generation, token, 1.0, "there")
    store.bind([meeting])
    return store


SIGNED: dict[str, str] = {
    "another key": writer()._signed("listens", 1, "x"),
    "another rank": writer()._signed("about", 0, "x"),
    "no signature": '- "x"',
    "another token": writer(token="y" * 16)._signed("about", 1, "x"),
    "another group": writer(group="other")._signed("about", 1, "x"),
    "another generation": writer(generation=1)._signed("about", 1, "x"),
    "another meeting": writer(meeting="b")._signed("about", 1, "x"),
}


@pytest.mark.parametrize("text", SIGNED.values(), ids=SIGNED)
def test_a_signature_is_for_one_key_rank_group_generation_and_meeting(text: str) -> None:
    memory = MemoryStore()
    store = WatchedStore(memory, 0, 2, "group", 0, TOKEN, 1.0, "here")
    store.bind(["a"])
    memory.set("about/1", writer()._signed("about", 1, "x"))
    assert store.read("about", 1) == "x"
    memory.set("about/1", text)
    with pytest.raises(RendezvousError, match=r"'about' of rank 1 is not signed"):
        store.read("about", 1)


SAID = {
    "nothing yet": ([], False, None),
    "part of a frame": ([b"\x20\0\0\0{"], False, None),
    "another message": ([frame(b'{"word": 1}')], False, None),
    "the end": ([], True, control.DIED),
    "another message, then the end": ([frame(b'{"word": 1}')], True, control.DIED),
    "goodbye": ([frame(b'{"goodbye": true}')], True, control.LEFT),
    "another message, then goodbye": ([frame(b"{}"), frame(b'{"goodbye": true}')], True, control.LEFT),
    "an abort": (
        [frame(b'{"kind": "PeerLost", "culprit": 3, "text": "no data"}')], True,
        control.Ending("gave up: no data", is_abort=True),
    ),
    "an abort of a process that ends": (
        [frame(b'{"kind": "PeerLost", "culprit": 3, "text": "no data", "ends": true}')], True,
        control.Ending("gave up: no data"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("said", "closes", "wanted"), SAID.values(), ids=SAID)
def test_how_a_peer_left_is_seen_without_reading(
    said: list[bytes], closes: bool, wanted: control.Ending | None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        with far:
            for each in said:
                far.sendall(each)
            if closes:
                far.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + 100
            while (found := control.ending(near)) != wanted and time.monotonic() < deadline:
                time.sleep(0.001)  # for the kernel to deliver
            assert found == wanted
            if said:
                assert near.recv(4096) == b"".join(said)
