"""`launcher doctor`, on this machine and on ones that are not well."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
import subprocess
import sys
from typing import NamedTuple

import pytest

from launcher.commands import doctor
from launcher.commands.doctor import Check
from launcher.run.agent import Agent
from tests.paths import REPOSITORY


@pytest.mark.slow
def test_this_machine_is_well() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", "doctor", "--json"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    checks = [Check(**check) for check in json.loads(done.stdout)]
    assert [check.name for check in checks] == [
        "Python", "torch", "ray", "numba", "numpy", "ports", "/dev/shm", "network", "engine", "settings",
        "all-reduce",
    ]  # fmt: skip
    assert [check for check in checks if check.state == "wrong"] == []
    assert done.returncode == 0


def one(name: str, checks: list[Check]) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def test_a_wrong_version(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0" if name == "ray" else real(name))
    check = one("ray", list(doctor._versions()))
    assert (check.state, check.found) == ("wrong", "1.0")
    assert "pip install 'ray" in str(check.advice)


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert one("torch", list(doctor._versions())).found == "not installed"


def test_too_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        total: int
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 * 1024**2, 60 * 1024**2))
    check = doctor._shared_memory()
    assert (check.state, check.found) == ("wrong", "60 MiB free of 64")
    assert "--shm-size" in str(check.advice)


def test_a_name_that_leads_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    check = doctor._interfaces()
    assert check.state == "look"
    if "loopback only" not in check.found:
        assert "resolves to 127.0.1.1" in str(check.advice)
        assert "NARROWGAUGE_INTERFACE=" in str(check.advice)


def test_an_engine_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def warm_up(self: Agent) -> float:
        raise RuntimeError("the engine does not compile on box: no compiler")

    monkeypatch.setattr(Agent, "warm_up", warm_up)
    check = doctor._engine()
    assert (check.state, check.found) == ("wrong", "the engine does not compile on box: no compiler")
    assert "backend: gloo" in str(check.advice)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("STREAMS", "many", "NARROWGAUGE_STREAMS is 'many'; wanted a whole number"),
        ("STREAMS", "100", "NARROWGAUGE_STREAMS is 100; wanted 1 to 64"),
        ("TIMEOUT_S", "-3", "NARROWGAUGE_TIMEOUT_S is -3.0; wanted more than 0"),
        ("INTERFACE", "eth99", "NARROWGAUGE_INTERFACE is 'eth99'; this machine has "),
        ("TOPOLOGY", "nowhere.json", "NARROWGAUGE_TOPOLOGY is 'nowhere.json': no such file"),
    ],
)
def test_a_variable_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(f"NARROWGAUGE_{name}", value)
    monkeypatch.setattr(doctor, "_engine", lambda: Check("engine", "ok", "there"))
    last = list(doctor.examine())[-1]
    assert (last.name, last.state) == ("settings", "wrong")
    assert last.found.startswith(words)


def test_a_check_for_people() -> None:
    assert doctor.format_check(Check("ports", "ok", "fine")) == "ok     ports           fine"
    assert doctor.format_check(Check("ports", "wrong", "none", "free some")).endswith("-> free some")
