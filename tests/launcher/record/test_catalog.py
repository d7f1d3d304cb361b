"""Which run a word means, and what a run is doing."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.errors import RunError
from launcher.record import catalog
from launcher.record.catalog import Known, cluster_state, local_state, resolve_name

KNOWN = [Known(name, None, None) for name in ("gpt-20260101-120000-aaaa", "gpt-20260102-120000-bbbb", "vit-2")]


@pytest.mark.parametrize(
    ("word", "expected"),
    [("vit-2", "vit-2"), ("v", "vit-2"), ("gpt-20260102", KNOWN[1].name), (KNOWN[0].name, KNOWN[0].name)],
)
def test_the_one(word: str, expected: str) -> None:
    assert resolve_name(word, KNOWN, "here").name == expected


def test_a_whole_name_is_meant_even_if_others_begin_with_it() -> None:
    assert resolve_name("a", [Known("a", None, None), Known("ab", None, None)], "here").name == "a"


@pytest.mark.parametrize(
    ("word", "known", "message"),
    [
        ("gpt", KNOWN, r"2 runs begin with 'gpt': gpt-2.*aaaa, gpt-2.*bbbb; give more of the name"),
        ("bert", KNOWN, r"no run 'bert' here; found: gpt-.*vit-2; use `--runs FOLDER` and `--address HOST:PORT`"),
        ("bert", [], r"no run 'bert' here; there is none; "),
        ("x", [Known(f"r{i}", None, None) for i in range(9)], r"found: r4, r5, r6, r7, r8 and 4 older"),
    ],
)
def test_none_or_several(word: str, known: list[Known], message: str) -> None:
    with pytest.raises(RunError, match=message):
        resolve_name(word, known, "here")


def owner(**changes: Any) -> dict[str, Any]:
    me = psutil.Process()
    return {"host": socket.gethostname(), "pid": me.pid, "started_at": me.create_time(), **changes}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "waiting"),
        ({"launcher.json": owner()}, "running"),
        ({"launcher.json": owner(started_at=1.0)}, "killed"),  # the pid is another process's by now
        ({"launcher.json": owner(pid=2**22 - 1)}, "killed"),
        ({"launcher.json": owner(host="box-9")}, "unknown"),
        ({"launcher.json": owner(), "summary.json": {"status": "failed"}}, "failed"),
    ],
)
def test_state_here(tmp_path: Path, files: dict[str, Any], expected: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert local_state(tmp_path) == expected


@pytest.mark.parametrize(
    ("ray", "summary", "expected"),
    [
        ("PENDING", None, "waiting"),
        ("RUNNING", None, "running"),
        ("STOPPED", None, "stopped"),
        ("FAILED", None, "failed"),
        ("SUCCEEDED", None, "finished"),
        ("STOPPED", {"status": "failed"}, "failed"),
    ],
)
def test_state_there(ray: str, summary: dict[str, Any] | None, expected: str) -> None:
    assert cluster_state(ray, summary) == expected


def test_a_child_that_has_ended_but_was_not_waited_for_is_gone() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    started_at = psutil.Process(pid).create_time()
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert catalog.process_of(owner(pid=pid, started_at=started_at)) is None
    os.waitpid(pid, 0)
