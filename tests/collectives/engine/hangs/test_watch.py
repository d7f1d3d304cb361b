"""A watch whose own work fails: the thread that read a word goes on, whatever that is."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from collectives.engine.hangs.diagnosis import Whereabouts
from collectives.engine.hangs.watch import Watch
from collectives.transport.control import ControlChannel


def lost() -> Whereabouts:
    raise FileNotFoundError(2, "No such file or directory")


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Rank 1's, of two, which cannot say where it is."""
    near, far = socket.socketpair()
    with near, far:
        made = Watch(1, "0", ["rank 0", "rank 1"], ControlChannel({0: far}), lost, 1.0)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize(
    "word",
    [
        {"word": "where", "question": 1},
        {"word": "where", "question": float("inf")},
        {"word": "here", "question": 1, "op": float("inf")},
        {"word": "noted", "op": float("inf")},
        {"word": "stalled", "op": None},
    ],
)
def test_no_word_fails_its_reader(watch: Watch, word: dict[str, object]) -> None:
    watch._channel.on_word(0, word)


def test_a_process_that_can_start_no_thread_makes_no_report(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        watch._begin_report(1)
