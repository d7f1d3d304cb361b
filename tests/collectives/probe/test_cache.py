"""Measured links on disk."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from collectives.probe import recall, remember
from collectives.probe.cache import VERSION
from collectives.topology import Host, Pair, Site, Topology
from tests.paths import REPOSITORY

HOSTS, MACHINES = ["a", "b", "a", "c"], ["1/x", "1/y", "1/x", "2/z"]
MEASURED = Topology(
    (Host("a", (0, 2), 1e6, 2e6, 3e9, 1e-4), Host("b", (1,), 4e6), Host("c", (3,), 5e6)),
    (Site("s", ("a", "b"), 7e6, 8e6),),
    (Pair("a", "b", 9e5),),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "narrowgauge" / "links"


def test_what_was_remembered_is_recalled(cache: Path) -> None:
    assert recall(HOSTS, MACHINES) is None
    path = remember(MEASURED, HOSTS, MACHINES)
    assert [*cache.iterdir()] == [path]
    assert path.name.endswith(f"-{VERSION}.json")
    assert recall(HOSTS, MACHINES) == MEASURED


def test_ranks_are_seated_anew() -> None:
    remember(MEASURED, HOSTS, MACHINES)
    found = recall(["c", "a", "b", "b"], ["2/z", "1/x", "1/y", "1/y"])
    assert found == MEASURED.seated(["c", "a", "b", "b"])
    assert found is not None
    assert [(host.name, host.ranks, host.up_bytes_per_s) for host in found.hosts] == [
        ("c", (0,), 5e6),
        ("a", (1,), 1e6),
        ("b", (2, 3), 4e6),
    ]


@pytest.mark.parametrize(
    ("hosts", "machines"),
    [
        (["a", "b"], ["1/x", "1/y"]),
        (["a", "b", "c", "d"], ["1/x", "1/y", "2/z", "3/z"]),
        (["a", "b", "c"], ["1/x", "1/y", "2/rebooted"]),
        (["a", "c", "b"], ["1/x", "1/y", "2/z"]),
    ],
    ids=["fewer", "more", "another machine of that name", "names exchanged"],
)
def test_other_hosts_are_measured_anew(hosts: list[str], machines: list[str]) -> None:
    remember(MEASURED, HOSTS, MACHINES)
    assert recall(hosts, machines) is None


def test_the_latest_counts(cache: Path) -> None:
    remember(Topology.from_hosts(HOSTS), HOSTS, MACHINES)
    remember(MEASURED, HOSTS, MACHINES)
    assert recall(HOSTS, MACHINES) == MEASURED
    assert len([*cache.iterdir()]) == 1


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"hosts": [', b'{"hosts": [{"name": "a", "ranks": [0], "up_bytes_per_s": -1}]}', b"\xff\xfe\0", b"[]"],
    ids=["empty", "cut off", "wrong", "binary", "something else"],
)
def test_a_damaged_file_is_told_and_ignored(damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = remember(MEASURED, HOSTS, MACHINES)
    path.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert recall(HOSTS, MACHINES) is None
    (record,) = caplog.records
    assert "measured again" in record.message
    assert str(path) in record.message
    remember(MEASURED, HOSTS, MACHINES)
    assert recall(HOSTS, MACHINES) == MEASURED


def test_a_file_without_one_of_the_hosts_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    path = remember(MEASURED, HOSTS, MACHINES)
    path.write_text(Topology.from_hosts("ab").to_json())
    assert recall(HOSTS, MACHINES) is None
    assert "no host is called 'c'" in caplog.text


def test_a_folder_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="Not a directory"):
        remember(MEASURED, HOSTS, MACHINES)
    assert recall(HOSTS, MACHINES) is None


def test_a_folder_that_may_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """As somebody else than root, who may write anywhere."""
    script = (
        "from tests.collectives.probe.test_cache import *\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: remember(MEASURED, HOSTS, MACHINES)\n"
        "except PermissionError: print('refused', recall(HOSTS, MACHINES))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
        assert done.stdout == "refused None\n", done.stderr


def test_a_full_disk_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        remember(MEASURED, HOSTS, MACHINES)
    assert [*cache.iterdir()] == []


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(OSError, match="set HOME or XDG_CACHE_HOME"):
        remember(MEASURED, HOSTS, MACHINES)
    assert recall(HOSTS, MACHINES) is None
    assert "set HOME or XDG_CACHE_HOME" in caplog.text


def test_without_xdg_it_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert remember(MEASURED, HOSTS, MACHINES).parent == tmp_path / ".cache" / "narrowgauge" / "links"
