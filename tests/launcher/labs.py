"""What tests of labs share: the name of this process's lab, what they need, the commands, and what is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.lab import network, record
from tests.paths import REPOSITORY

LAB = f"t{os.getpid()}"

can_make_labs = os.geteuid() == 0 and bool(shutil.which("ip") and shutil.which("tc"))
in_lab = [
    pytest.mark.lab,
    pytest.mark.skipif(not can_make_labs, reason="network namespaces need root, `ip` and `tc`"),
]


def launcher(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=cwd, env=environment(), timeout=240)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "launcher.cli", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "120", "PYTHONPATH": str(REPOSITORY)}


def write(folder: Path, text: str) -> Path:
    path = folder / "lab.yaml"
    path.write_text(text)
    return path


def wait_until(what: Callable[[], object], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def left() -> list[str]:
    """What there is of the lab of this process."""
    spaces = [name for name in network.existing() if name.startswith(f"ng.{LAB}")]
    return spaces + [name for name in record.names() if name == LAB]
