"""`python -m collectives probe`: what it shows, what it refuses, and, as root, what it finds in a lab."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from collectives.__main__ import main
from collectives.probe.command import format_topology
from collectives.topology import Host, Pair, Site, Topology
from tests import processes
from tests.paths import REPOSITORY

MBIT = 1e6 / 8

FARM = Topology(
    (
        Host("a", (0, 1), 100 * MBIT, 200 * MBIT, 9e9, 20e-6),
        Host("a-longer-name", (2,), 50 * MBIT, 60 * MBIT),
        Host("c", (3,), 400 * MBIT, 400 * MBIT),
    ),
    (Site("site a", ("a", "a-longer-name"), 40 * MBIT, 30 * MBIT),),
    (Pair("a", "a-longer-name", 7 * MBIT),),
)


def test_the_table_has_hosts_sites_and_what_goes_between() -> None:
    lines = [line.split() for line in format_topology(FARM, 1.23).splitlines()]
    assert format_topology(FARM, 1.23).startswith("3 hosts, measured in 1.2 s; Mbit/s of payload\n")
    assert ["host", "up", "down", "latency", "memory", "ranks"] in lines
    assert ["a", "100", "200", "20", "us", "9", "GB/s", "2"] in lines
    assert ["a-longer-name", "50", "60", "100", "us", "5", "GB/s", "1"] in lines
    assert "site a: up 40, down 30, shared by a, a-longer-name\n" in format_topology(FARM, 1.23)
    assert lines[-4:] == [
        ["from\\to", "a", "a-longer-name", "c"],
        ["a", "-", "7", "40"],
        ["a-longer-name", "50", "-", "40"],
        ["c", "30", "30", "-"],
    ]


def test_columns_stand_below_each_other() -> None:
    text = format_topology(FARM, 1.0)
    matrix = text.splitlines()[-4:]
    assert len({len(line) for line in matrix}) == 1
    assert text.endswith("\n")


def test_slow_links_are_not_rounded_to_nothing() -> None:
    slow = Topology((Host("a", (0,), 0.5 * MBIT, 1.25 * MBIT), Host("b", (1,), 9.57 * MBIT, 9.57 * MBIT)))
    assert ["a", "0.5", "1.25"] in [line.split()[:3] for line in format_topology(slow, 1.0).splitlines()]
    assert ["b", "1.25", "-"] in [line.split() for line in format_topology(slow, 1.0).splitlines()]


def test_many_hosts_have_no_matrix() -> None:
    text = format_topology(Topology.from_hosts([f"h{i}" for i in range(17)]), 1.0)
    assert "h16" in text
    assert "from" not in text


def test_one_host_has_no_matrix() -> None:
    text = format_topology(Topology.from_hosts("aa"), 0.1)
    assert text.startswith("1 host, ")
    assert "from" not in text


def test_alone_it_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert main(["probe"]) == 2
    said = capsys.readouterr().err
    assert "python -m collectives probe: probe runs on several ranks" in said
    assert "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set" in said
    assert "torchrun" in said


def test_a_folder_that_is_missing_is_told_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--save", "no/such/folder/x.json"]) == 2
    assert "folder no/such/folder does not exist; create it first" in capsys.readouterr().err


def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr("collectives.probe.command.TIMEOUT_S", 0.5)
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["probe"]) == 1
    assert f"rank 1 cannot reach rank 0's store at 127.0.0.1:{port}" in capsys.readouterr().err


def as_rank(rank: int, size: int, store: object, port: int, arguments: list[str]) -> tuple[int, str]:
    """One rank of two emulated hosts; status and what it printed."""
    import contextlib
    import io

    variables = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()}, NARROWGAUGE_HOST="ab"[rank % 2])
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = main(["probe", *arguments])
    return status, out.getvalue()


def test_ranks_of_two_hosts_measure_show_and_remember(tmp_path: Path) -> None:
    saved = tmp_path / "links.json"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    ended = processes.run(as_rank, 3, port, ["--json", "--save", str(saved)], environment=environment)
    assert [status for status, _ in ended] == [0, 0, 0]
    assert [printed for _, printed in ended[1:]] == ["", ""]
    topology = Topology.from_json(ended[0][1])
    assert [(host.name, host.ranks) for host in topology.hosts] == [("a", (0, 2)), ("b", (1,))]
    assert Topology.load(saved) == topology
    (remembered,) = (tmp_path / "narrowgauge" / "links").iterdir()
    assert Topology.load(remembered) == topology


# ---- as root, between real links -----------------------------------------------------------------------------------

LAB = f"""
name: p{os.getpid()}
hosts:
  - {{name: a, mbit: 400}}
  - {{name: b, mbit: 400, ranks: 2}}
  - {{name: c, up_mbit: 200, down_mbit: 400}}
  - {{name: d, mbit: 50}}
"""


@pytest.mark.lab
@pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")),
    reason="network namespaces need root, `ip` and `tc`",
)
@pytest.mark.measured
def test_rates_in_a_lab_are_those_of_its_links(tmp_path: Path) -> None:
    file, saved = tmp_path / "lab.yaml", tmp_path / "links.json"
    file.write_text(LAB)
    command = [sys.executable, "-m", "launcher.cli", "lab", "run", str(file), "--"]
    command += [sys.executable, "-m", "collectives", "probe", "--save", str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "4 hosts, measured in" in done.stdout
    topology = Topology.load(saved)
    tcp = 0.957  # of what a link carries is payload
    found = {host.name: (host.up_bytes_per_s, host.down_bytes_per_s) for host in topology.hosts}
    assert found == {
        name: (pytest.approx(up * tcp * MBIT, rel=0.1), pytest.approx(down * tcp * MBIT, rel=0.1))
        for name, up, down in (("a", 400, 400), ("b", 400, 400), ("c", 200, 400), ("d", 50, 50))
    }
    assert [host.ranks for host in topology.hosts] == [(0,), (1, 2), (3,), (4,)]
    assert (topology.sites, topology.pairs) == ((), ())
