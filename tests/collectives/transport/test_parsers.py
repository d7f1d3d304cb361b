"""Every parser of what others may send or write, with any bytes: refused with a reason, or read; never a crash."""

from __future__ import annotations

import contextlib
import hashlib
import json

import pytest

from collectives.errors import NarrowgaugeError, RendezvousError
from collectives.options import Options
from collectives.transport import control
from collectives.transport.handshake import FRAME_LIMIT, MAC_BYTES, Admission, Refused, Secret
from collectives.transport.rank_info import at, own_info, read_info
from collectives.transport.tcp import frame
from collectives.transport.watched_store import WatchedStore
from tests.collectives.engine.group import MemoryStore

pytest.importorskip("hypothesis", reason="hypothesis is not installed (it is in the extra 'test')")
from hypothesis import given, settings
from hypothesis import strategies as st

TOKEN = "0123456789abcdef"
SECRET = Secret(TOKEN.encode(), b"this meeting")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=1100), max_size=4))
def test_no_bytes_of_a_stranger_are_admitted_or_crash(pieces: list[bytes]) -> None:
    admission = Admission("group", 0, 0, SECRET)
    with contextlib.suppress(Refused):
        for piece in pieces:
            assert admission.receive(piece) is None


@settings(max_examples=200, deadline=None)
@given(JSON | st.binary(min_size=1, max_size=900), st.integers(1, 40))
def test_any_hello_of_a_token_holder_is_read_or_refused_with_a_reason(document: object, step: int) -> None:
    """In pieces of any size, as a network delivers it."""
    first = document if isinstance(document, bytes) else json.dumps(document).encode()[:900]
    admission = Admission("group", 0, 0, SECRET)
    transcript = hashlib.sha256(admission.nonce + b"n" * 32 + first).digest()
    sent = frame(SECRET.proof(b"connector", transcript) + b"n" * 32 + first)
    pieces = [sent[start : start + step] for start in range(0, len(sent), step)]
    assert [admission.receive(piece) for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    with pytest.raises(Refused) as caught:
        admission.receive(pieces[-1])
    assert MAC_BYTES < len(caught.value.answer) <= FRAME_LIMIT + 4


OWN = own_info(0, Options(), None).to_json()


@settings(max_examples=300, deadline=None)
@given(JSON | st.dictionaries(st.sampled_from([*OWN]), JSON, max_size=5).map(lambda some: {**OWN, **some}))
def test_any_introduction_is_read_or_refused(document: object) -> None:
    with contextlib.suppress(RendezvousError):
        info = read_info(document, 0, "rank 0")
        info.describe(), info.link_key(), hash(info.machine)
        at(info, document, "rank 0")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda each: frame(json.dumps(each).encode())))
def test_any_last_words_are_read_or_ignored(said: bytes) -> None:
    ending = control._ending_in(said)
    assert ending is None or ending.text


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([None, TOKEN]))
def test_any_text_in_the_store_is_read_or_refused(text: bytes, token: str | None) -> None:
    store = WatchedStore(MemoryStore(), 0, 2, "group", 0, token, 1.0, "here")
    for prefix in (b"", b"- "):
        with contextlib.suppress(NarrowgaugeError):
            store._verified("about", 1, prefix + text)
            assert token is None
