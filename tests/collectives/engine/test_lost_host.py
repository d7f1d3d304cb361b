"""A host whose link goes dead: no packet says so, only silence. Two network namespaces and a cable between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the command ip (package iproute2)"),
]

RANK = """
import sys
import numpy as np
from torch.distributed import FileStore
from collectives.schedule.op import OpSpec
from collectives.engine.runner import connect
from collectives.options import Options

rank = int(sys.argv[1])
engine = connect(FileStore(sys.argv[2], 2), rank, 2, "test", 600.0, Options(host=f"box-{rank}"))
value = np.ones(1_000_000, np.float32)
spec = OpSpec("all_reduce", "float32", "max", None, (1_000_000,))
while True:
    engine.run(spec, value.ctypes.data, value.ctypes.data)
    print("op", flush=True)
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    """Two namespaces of this test's own, joined by a veth pair; gone afterwards."""
    near, far = (f"ngtest-{os.getpid()}-{side}" for side in "ab")
    try:
        for name in (near, far):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", near, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", far)
        for name, address in ((near, "10.99.0.1/24"), (far, "10.99.0.2/24")):
            ip("-n", name, "address", "add", address, "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield near, far
    finally:
        for name in (near, far):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.measured
def test_a_cut_cable_is_noticed_on_both_sides_in_seconds(cable: tuple[str, str], tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for rank, name in enumerate(cable)
    ]
    try:
        for process in ranks:
            assert process.stdout is not None
            assert process.stdout.readline() == "op\n" or pytest.fail(process.communicate()[1])
        ip("-n", cable[1], "link", "set", "eth0", "down")
        cut_at = time.monotonic()
        errors = [process.communicate(timeout=200)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert time.monotonic() - cut_at < 25
    for rank, error in enumerate(errors):
        assert f"PeerLost: rank {rank} (box-{rank})" in error, error
        assert f"rank {1 - rank} (box-{1 - rank}) does not answer any more" in error, error
