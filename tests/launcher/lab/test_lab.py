"""Labs: their files, and, as root, real namespaces, real links and real processes in them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from collectives.topology import Topology
from launcher.config import job_file
from launcher.config.lab_file import LabFile
from launcher.errors import ConfigError, LabError
from launcher.lab import commands, inside, life, network, ranks
from launcher.lab.record import LabRecord
from launcher.lab.warden import Warden
from tests.launcher.labs import LAB, REPOSITORY, command, environment, in_lab, launcher, left, wait_until, write

SHIPPED = sorted((REPOSITORY / "configs" / "lab").glob("*.yaml"))
GOOD = "name: demo\nhosts:\n  - {name: a, mbit: 100}\n  - {name: b, mbit: 100}\n"


# ---- files ---------------------------------------------------------------------------------------------------------

BAD = {
    "unknown key": (GOOD + "site: []\n", 5, ["unknown key 'site'", "nearest: sites"]),
    "unknown key of a host": (GOOD.replace("b, mbit", "b, mbits"), 4, ["'mbits' in 'hosts.1'", "nearest: mbit"]),
    "text for a rate": (GOOD.replace("b, mbit: 100", "b, mbit: fast"), 4, ["'hosts.1.mbit'", "'fast'", "a number"]),
    "no rate at all": (GOOD.replace("b, mbit: 100", "b"), 4, ["'hosts.1'", "either mbit, or up_mbit and down_mbit"]),
    "half a rate": (GOOD.replace("b, mbit: 100", "b, up_mbit: 3"), 4, ["either mbit, or up_mbit and down_mbit"]),
    "rate of zero": (GOOD.replace("b, mbit: 100", "b, mbit: 0"), 4, ["got:     0", "greater than or equal to 0.1"]),
    "no ranks": (GOOD.replace("b, mbit", "b, ranks: 0, mbit"), 4, ["'hosts.1.ranks'", "greater than or equal to 1"]),
    "name no hostname": (GOOD.replace("name: b", "name: B!"), 4, ["'hosts.1.name'", "small letters, digits"]),
    "name leads elsewhere": (GOOD.replace("demo", "../demo"), 1, ["'name'", "small letters, digits"]),
    "two of one name": (GOOD.replace("name: b", "name: a"), 4, ["duplicate name 'a'"]),
    "host and site of one name": (
        GOOD + "sites:\n  - {name: a, hosts: [b], mbit: 3}\n",
        6,
        ["duplicate name 'a'"],
    ),
    "unknown host": (
        GOOD.replace("name: b", "name: beta") + "sites:\n  - {name: s, hosts: [a,\n      bet], mbit: 3}\n",
        7,
        ["no host is called 'bet'", "nearest: beta"],
    ),
    "host in two sites": (
        GOOD + "sites:\n  - {name: s, hosts: [a], mbit: 3}\n  - {name: t, hosts: [a], mbit: 3}\n",
        7,
        ["host 'a' is in two sites", "s and t"],
    ),
    "no hosts": ("name: demo\n", 1, ["key 'hosts' is missing"]),
    "a list": ("- a\n", 1, ["not a lab", "name, hosts, sites"]),
    "a tag": (GOOD + "sites: !!python/name:os []\n", 5, ["a tag that is not allowed in lab files"]),
}


@pytest.mark.parametrize(("text", "line", "words"), BAD.values(), ids=list(BAD))
def test_a_mistake_in_a_lab_file_is_told_with_its_line(tmp_path: Path, text: str, line: int, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        job_file.load_lab(write(tmp_path, text))
    assert caught.value.place.line == line
    assert not [word for word in words if word not in str(caught.value)]


def test_a_lab_file_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    done = launcher("lab", "topology", str(tmp_path / "lub.yaml"))
    assert done.returncode == 2
    assert f"nearest: {tmp_path / 'lab.yaml'}" in done.stderr


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_say_what_they_are_for(path: Path) -> None:
    assert job_file.load_lab(path).name == path.stem
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert [word for line in comments for word in ("Purpose:", "Run:", "Expect:") if line.startswith(f"# {word}")] == [
        "Purpose:",
        "Run:",
        "Expect:",
    ]


def test_topology_of_a_file(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "name: demo\nhosts:\n  - {name: a, mbit: 100, ranks: 2}\n  - {name: b, up_mbit: 8, down_mbit: 16, ranks: 3}\n"
        "sites:\n  - {name: s, hosts: [b], up_mbit: 4, down_mbit: 2}\n",
    )
    topology = Topology.from_json(launcher("lab", "topology", str(file)).stdout)
    a, b = topology.hosts
    assert (a.name, a.ranks, a.up_bytes_per_s, a.down_bytes_per_s) == ("a", (0, 1), 11962500, 11962500)
    assert (b.name, b.ranks, b.up_bytes_per_s, b.down_bytes_per_s) == ("b", (2, 3, 4), 957000, 1914000)
    (site,) = topology.sites
    assert (site.name, site.hosts, site.up_bytes_per_s, site.down_bytes_per_s) == ("s", ("b",), 478500, 239250)


def test_addresses_sort_like_hosts() -> None:
    lab = LabFile.model_validate({"name": "x", "hosts": [{"name": f"h{i}", "mbit": 1} for i in range(150)]})
    addresses = [lab.address(index) for index in range(150)]
    assert addresses == sorted(addresses)
    assert len(set(addresses)) == 150


def test_without_root_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match=r"needs root.* `emulate:` .*; got user id 1000"):
        life.up(job_file.load_lab(write(tmp_path, GOOD)), "lab.yaml")


def test_without_tools_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=r"`ip` and `tc` of iproute2.*; got no `ip` in PATH"):
        life.up(job_file.load_lab(write(tmp_path, GOOD)), "lab.yaml")


# ---- up and down ---------------------------------------------------------------------------------------------------


@pytest.fixture
def lab() -> Iterator[LabFile]:
    """Two hosts, three ranks, a name of this process alone; nothing of it is left afterwards."""
    yield (
        LabFile.model_validate(
            {"name": LAB, "hosts": [{"name": "a", "mbit": 100, "ranks": 2}, {"name": "b", "mbit": 100}]}
        )
    )
    life.down(LAB)
    assert not left()


@pytest.fixture
def file(lab: LabFile, tmp_path: Path) -> Path:
    return write(tmp_path, f"name: {LAB}\nhosts:\n  - {{name: a, mbit: 100, ranks: 2}}\n  - {{name: b, mbit: 100}}\n")


class TestUpAndDown:
    pytestmark = in_lab

    def test_the_commands_from_up_to_down(self, file: Path) -> None:
        def said(*arguments: str) -> str:
            done = CliRunner().invoke(commands.app, arguments)
            assert done.exception is None or isinstance(done.exception, LabError)
            return str(done.exception or done.output)

        outside = socket.if_nameindex()
        assert "10.77.0.101  ranks 0 to 1    up 100 down 100 Mbit/s" in said("up", str(file))
        assert sorted(left()) == [f"ng.{LAB}", f"ng.{LAB}.a", f"ng.{LAB}.b", LAB]
        assert f"lab '{LAB}' is up already" in said("up", str(file))
        here = ("--lab", LAB)
        assert said("link", "b", "--mbit", "25", "--down", *here) == "b: up 100 down 25 Mbit/s\n"
        assert "10.77.0.102  rank 2          up 100 down 25 Mbit/s" in said("status")
        assert said("link", "b", "--cut", *here) == "b: CUT, up 100 down 25 Mbit/s\n"
        assert "CUT" in said("status")
        assert said("link", "b", "--restore", *here) == "b: up 100 down 100 Mbit/s\n"
        assert "no host or site 'c'; it has a, b" in said("link", "c", "--cut", *here)
        assert "takes one of" in said("link", "a", "--cut", "--restore", *here)
        assert "takes one of" in said("link", "a", "--cut", "--up", *here)
        assert "applies to commands that run in every rank" in said(
            "run", str(file), "--known-links", "--", "launcher", "submit", "x"
        )
        assert "no lab 'other' is up" in said("link", "a", "--cut", "--lab", "other")
        assert said("down", LAB) == f"lab {LAB} is down\n"
        assert not left()
        assert said("down", LAB) == f"lab {LAB} was not up\n"
        assert socket.if_nameindex() == outside

    def test_bursts_and_queues_of_the_lab_file(self, lab: LabFile) -> None:
        deep = lab.model_copy(update={"burst_ms": 8.0, "queue_ms": 100.0})
        (cable, *_) = network.cables(deep).values()
        life.up(deep, "lab.yaml")
        try:
            shown = network._run("tc", "-n", cable.up.namespace, "-j", "qdisc", "show", "dev", cable.up.device)
            options = json.loads(shown)[0]["options"]
        finally:
            life.down(deep.name)
        rate = cable.up_mbit * 1e6 / 8
        assert options["burst"] == pytest.approx(rate * 0.008, rel=0.02)

    def test_what_was_made_before_a_failure_is_taken_back(self, lab: LabFile, monkeypatch: pytest.MonkeyPatch) -> None:
        shaped = []

        def fail_at_the_third(port: network.Port, mbit: float, buffers: network.Buffers) -> None:
            shaped.append(port)
            if len(shaped) == 3:
                network._run("tc", "-n", port.namespace, "qdisc", "add", "dev", port.device, "root", "nonsense")

        monkeypatch.setattr(network, "shape", fail_at_the_third)
        with pytest.raises(LabError, match=r"`tc .* nonsense` failed: Error: Specified qdisc kind is unknown"):
            life.up(lab, "lab.yaml")
        assert len(shaped) == 3
        assert not left()

    def test_a_namespace_of_somebody_else_stays(self, lab: LabFile) -> None:
        foreign = f"ng.{LAB}.b"
        subprocess.run(["ip", "netns", "add", foreign], check=True)
        try:
            with pytest.raises(LabError, match=f"namespace '{foreign}' is there already and no lab of ours"):
                life.up(lab, "lab.yaml")
            assert left() == [foreign]
        finally:
            subprocess.run(["ip", "netns", "delete", foreign], check=True)

    def test_a_half_made_lab_is_shown_and_taken_down(self, lab: LabFile) -> None:
        LabRecord.claim(lab, "lab.yaml")
        subprocess.run(["ip", "netns", "add", f"ng.{LAB}"], check=True)
        shown = CliRunner().invoke(commands.app, ["status"])
        assert f"lab {LAB} is on its way up or down, or was cut off there" in shown.output
        assert life.down(LAB)
        assert not left()

    def test_down_ends_what_runs_in_the_lab(self, lab: LabFile) -> None:
        life.up(lab, "lab.yaml")
        stubborn = inside.start(
            lab, 1, ["sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000; sleep 1000"], env=dict(os.environ), tied=False
        )
        wait_until(lambda: len(network.pids(network.namespaces(lab))) == 3)
        assert life.down(LAB)
        assert stubborn.wait(timeout=100) == -signal.SIGKILL
        assert not network.pids(network.namespaces(lab))

    def test_another_lab_of_that_name_is_not_used(self, lab: LabFile, tmp_path: Path) -> None:
        life.up(lab, "first.yaml")
        other = write(tmp_path, GOOD.replace("demo", LAB))
        done = launcher("lab", "run", str(other), "--", "true")
        assert done.returncode == 1
        assert "is up with other contents, from first.yaml" in done.stderr


# ---- links ---------------------------------------------------------------------------------------------------------


class Stream:
    """Bytes from host a to host b as fast as they go, counted where they arrive."""

    def __init__(self, lab: LabFile) -> None:
        listener = inside.call(lab, 1, lambda: socket.create_server((lab.address(1), 5000)))
        self._sender = inside.call(lab, 0, lambda: socket.create_connection((lab.address(1), 5000)))
        self._receiver, _ = listener.accept()
        listener.close()
        self.arrived = 0
        for work in (self._send, self._receive):
            threading.Thread(target=work, daemon=True).start()

    def mbit(self, seconds: float) -> float:
        """Mbit/s of payload over the next seconds."""
        before, start = self.arrived, time.perf_counter()
        time.sleep(seconds)
        return (self.arrived - before) * 8 / (time.perf_counter() - start) / 1e6

    def close(self) -> None:
        for each in (self._sender, self._receiver):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _send(self) -> None:
        with suppress(OSError):
            while True:
                self._sender.sendall(bytes(32 * 1024))

    def _receive(self) -> None:
        with suppress(OSError):
            while got := self._receiver.recv(64 * 1024):
                self.arrived += len(got)


class TestLinks:
    pytestmark = in_lab

    def test_links_are_cut_and_mended_under_a_running_stream(self, lab: LabFile) -> None:
        life.up(lab, "lab.yaml")
        cable = network.cables(lab)["b"]
        stream = Stream(lab)
        try:
            wait_until(lambda: stream.mbit(0.2) > 0)
            network.shape(cable.down, 10, cable.buffers)
            wait_until(lambda: stream.mbit(0.2) > 0)
            network.cut(cable)
            wait_until(lambda: stream.mbit(0.5) == 0)
            assert stream.mbit(0.5) == 0
            network.shape(cable.down, 100, cable.buffers)
            network.restore(cable)
            wait_until(lambda: stream.mbit(0.2) > 0)
        finally:
            stream.close()

    @pytest.mark.measured
    def test_a_running_stream_is_as_fast_as_its_link(self, lab: LabFile) -> None:
        life.up(lab, "lab.yaml")
        cable = network.cables(lab)["b"]
        stream = Stream(lab)
        try:
            time.sleep(0.2)
            assert 60 < stream.mbit(0.5) < 105
            network.shape(cable.down, 10, cable.buffers)
            time.sleep(0.3)
            assert 5 < stream.mbit(1.0) < 15
            network.cut(cable)
            time.sleep(0.2)
            assert stream.mbit(0.5) == 0
            network.shape(cable.down, 100, cable.buffers)
            network.restore(cable)
            wait_until(lambda: stream.mbit(0.2) > 50, 10)
        finally:
            stream.close()

    def test_a_fast_link_halved_under_a_running_stream(self, lab: LabFile) -> None:
        """Packets of 64 KB wait, and the burst is smaller than they are from now on."""
        life.up(lab, "lab.yaml")
        cables = network.cables(lab)
        network.shape(cables["a"].up, 4000, cables["a"].buffers)
        network.shape(cables["b"].down, 1000, cables["b"].buffers)
        stream = Stream(lab)
        try:
            for mbit in (500, 250, 1000, 100):
                time.sleep(0.2)
                network.shape(cables["b"].down, mbit, cables["b"].buffers)
                wait_until(lambda: stream.mbit(0.2) > 20)
        finally:
            stream.close()

    @pytest.mark.measured
    def test_hosts_of_one_site_share_its_trunk(self) -> None:
        lab = LabFile.model_validate(
            {
                "name": LAB,
                "hosts": [{"name": name, "mbit": 100} for name in "ab"],
                "sites": [{"name": "far", "hosts": ["b"], "up_mbit": 80, "down_mbit": 20}],
            }
        )
        try:
            life.up(lab, "lab.yaml")
            stream = Stream(lab)
            time.sleep(0.3)
            assert 12 < stream.mbit(0.6) < 25
            stream.close()
        finally:
            life.down(LAB)


# ---- ranks ---------------------------------------------------------------------------------------------------------

SHOW = """
import json, os, socket
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR")
found = {name: os.environ[name] for name in names}
interface = os.environ["NARROWGAUGE_INTERFACE"]
assert interface == os.environ["GLOO_SOCKET_IFNAME"] in [name for _, name in socket.if_nameindex()]
if found["RANK"] == "0":
    socket.create_server((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))).close()
assert [socket.gethostbyname(name) for name in "ab"] == ["10.77.0.101", "10.77.0.102"]
print(json.dumps({**found, "hostname": socket.gethostname(), "known": os.environ.get("NARROWGAUGE_TOPOLOGY"),
                  "lab": open(os.environ["NARROWGAUGE_LAB_TOPOLOGY"]).read()}))
"""


class TestRanks:
    pytestmark = in_lab

    def test_every_rank_finds_its_place(self, file: Path) -> None:
        done = launcher("lab", "run", str(file), "--known-links", "--", "python", "-c", SHOW)
        assert (done.returncode, done.stderr) == (0, "")
        lines = sorted(done.stdout.splitlines(), key=lambda line: line.startswith("["))
        assert [line[:4] for line in sorted(lines[1:])] == ["[1] ", "[2] "]
        found = [json.loads(lines[0]), *(json.loads(line[4:]) for line in sorted(lines[1:]))]
        names = ("RANK", "hostname", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        assert [tuple(each[name] for name in names) for each in found] == [
            ("0", "a", "0", "2", "0"),
            ("1", "a", "1", "2", "0"),
            ("2", "b", "0", "1", "1"),
        ]
        for each in found:
            assert (each["WORLD_SIZE"], each["GROUP_WORLD_SIZE"], each["MASTER_ADDR"]) == ("3", "2", "10.77.0.101")
            assert each["known"].endswith(f"{LAB}.topology.json")
            assert each["lab"] == job_file.load_lab(file).topology().to_json()
        assert not left()

    def test_the_first_failure_is_the_status_and_ends_the_others(
        self, lab: LabFile, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(ranks, "GRACE_S", 0.5)
        script = "case $RANK in 1) sleep 0.2; exit 7;; 2) sleep 0.4; echo because >&2; exit 3;; esac; sleep 1000"
        there = life.up(lab, "lab.yaml")
        with Warden() as warden:
            assert ranks.run(there, ["sh", "-c", script], warden, known_links=False) == 7
        told = capfd.readouterr().err
        assert "[2] because\n" in told
        assert "lab: rank 1 on host a ended with status 7\n" in told
        assert "lab: ended rank 0\n" in told
        assert not network.pids(network.namespaces(lab))

    def test_a_rank_that_a_signal_ends_is_128_and_the_signal(self, file: Path) -> None:
        assert launcher("lab", "run", str(file), "--", "sh", "-c", "kill -SEGV $$").returncode == 128 + 11

    def test_a_command_that_is_not_there(self, file: Path) -> None:
        done = launcher("lab", "run", str(file), "--", "no-such-command")
        assert done.returncode == 1
        assert "no command 'no-such-command' in PATH, to run on host 'a'" in done.stderr
        assert not left()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_nothing_outlives_the_runner(self, lab: LabFile, file: Path, number: signal.Signals) -> None:
        """Not even what the ranks started, nor the lab."""
        script = "sleep 1000 & sleep 1000; exit 0"
        runner = subprocess.Popen(
            command("lab", "run", str(file), "--", "sh", "-c", script), env=environment(), stderr=subprocess.DEVNULL
        )
        wait_until(lambda: len(running := pids()) == 9 and runner.pid not in running)
        runner.send_signal(number)
        assert runner.wait(timeout=100) == (-number if number == signal.SIGKILL else 128 + number)
        wait_until(lambda: not left())


def pids() -> list[int]:
    found = LabRecord.load(LAB)
    return network.pids(found.namespaces) if found else []
