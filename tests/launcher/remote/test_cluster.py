"""Jobs on a Ray cluster that was there before, with two nodes, which stays when they are over. The commands reach it
from outside, by HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.launcher.two_nodes import REPOSITORY, two_nodes

SCRIPT = """
import os
from launcher import progress
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NARROWGAUGE_HOST")
print({name: os.environ.get(name) for name in names})
progress.note(**{f"node{os.environ['RANK']}": os.environ["PLACE"]})
"""
SUM = """
import torch, torch.distributed as dist
from launcher import progress
dist.init_process_group("gloo")
values = torch.full((10007,), float(dist.get_rank() + 1))
dist.all_reduce(values)
progress.note(**{f"sum{dist.get_rank()}": values.unique().tolist()})
dist.destroy_process_group()
"""


SLOW = """
import os, time
from launcher import progress
for step in range(1, 10_000):
    print("step", step, flush=True)
    progress.report(step, loss=1 / step, tokens=10)
    time.sleep(0.1)
"""
MARK = "TEST_OF_CLUSTER"
MARKED = {MARK: str(os.getpid()), "PLACE": "the cluster"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    yield from two_nodes(**MARKED)


def launcher(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment(), timeout=240)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def workers_of_ours() -> list[str]:
    """Drivers, agents and workers of runs that live in the cluster of this test."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            ours = process.environ().get(MARK) == str(os.getpid())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if ours and any(sign in words for sign in ("launcher.", "ray::Agent", "ray::JobSupervisor")):
            found.append(words)
    return found


def groups_and_actors(address: str) -> list[str]:
    """What Ray still has of runs: placement groups and actors that live, by its own state API."""
    program = (
        "import sys\nfrom ray.util import state\n"
        "found = [*state.list_actors(address=sys.argv[1]), *state.list_placement_groups(address=sys.argv[1])]\n"
        "print([str(each) for each in found if each.state not in ('DEAD', 'REMOVED')])"
    )
    url = json.loads(subprocess.run(
        [sys.executable, "-c", "import sys, json; from launcher.remote.ray_jobs import _dashboard; "
         "print(json.dumps(_dashboard(sys.argv[1])))", address],
        capture_output=True, text=True, check=True, env=environment(),
    ).stdout)  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, env=environment())
    return list(eval(done.stdout))


def eventually(check: Callable[[], Any], timeout_s: float = 200) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.3)


def write(folder: Path, address: str, workers: dict[str, int], script: str = SCRIPT, backend: str = "gloo") -> None:
    (folder / "show.py").write_text(script)
    job = {
        "name": "by-address",
        "entrypoint": "show.py",
        "workers": workers,
        "cluster": {"address": address},
        "collectives": {"backend": backend},
    }
    (folder / "job.yaml").write_text(json.dumps(job))


def submit(
    folder: Path, address: str, workers: dict[str, int], script: str = SCRIPT, backend: str = "gloo"
) -> subprocess.CompletedProcess[str]:
    write(folder, address, workers, script, backend)
    return launcher("submit", "job.yaml", "--json", folder=folder)


@pytest.mark.slow
def test_two_nodes_by_address(tmp_path: Path, address: str) -> None:
    done = submit(tmp_path, address, {"count": 4, "hosts": 2})
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["notes"] == {f"node{rank}": "the cluster" for rank in range(4)}
    plan = json.loads((Path(summary["folder"]) / "plan.json").read_text())
    nodes = [seat["node"]["id"] for seat in plan["seats"]]
    assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
    variables = (Path(summary["folder"]) / "logs" / "rank-2.log").read_text()
    assert "'RANK': '2', 'WORLD_SIZE': '4', 'LOCAL_RANK': '0', 'LOCAL_WORLD_SIZE': '2', 'GROUP_RANK': '1'" in variables
    assert "'NARROWGAUGE_HOST': None" in variables


@pytest.mark.slow
def test_a_cluster_is_refused_filled_and_used_again(tmp_path: Path, address: str) -> None:
    refused = submit(tmp_path, address, {"count": 5})
    assert refused.returncode == 1
    assert "no room for 5 workers" in refused.stderr
    assert "Traceback" not in refused.stderr

    again = submit(tmp_path, address, {"count": 2, "cpus": 2})
    assert again.returncode == 0, again.stderr

    for hosts in (1, 2):
        over_the_engine = submit(tmp_path, address, {"count": 2, "hosts": hosts}, SUM, "narrowgauge")
        assert over_the_engine.returncode == 0, over_the_engine.stdout + over_the_engine.stderr
        summary = json.loads(over_the_engine.stdout)
        assert summary["notes"] == {"sum0": [3.0], "sum1": [3.0]}
        assert summary["collectives"]["ops"] >= 1


@pytest.mark.slow
def test_a_run_outlives_its_terminal_and_leaves_nothing(tmp_path: Path, address: str) -> None:
    before = set(os.listdir("/dev/shm"))
    write(tmp_path, address, {"count": 4, "hosts": 2}, SLOW)
    terminal = subprocess.Popen(
        [sys.executable, "-m", "launcher.cli", "submit", "job.yaml", "--logs"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(),
    )
    assert terminal.stdout is not None
    assert any("[rank 3] step 3" in line for line in terminal.stdout)
    os.killpg(terminal.pid, signal.SIGHUP)
    assert terminal.wait(timeout=120) == -signal.SIGHUP
    terminal.stdout.close()

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    at = ("--address", address)
    (row,) = [row for row in json.loads(launcher("list", "--json", *at, folder=elsewhere).stdout) if "step" in row][-1:]
    assert (row["state"], row["ranks"], row["address"]) == ("running", 4, address)
    run = row["run"]
    shown = json.loads(launcher("status", run, "--json", *at, folder=elsewhere).stdout)
    assert shown["state"] == "running"
    assert {rank["state"] for rank in shown["ranks"]} == {"running"}
    assert not [rank for rank in shown["ranks"] if rank["address"].startswith("127.") or not rank["interface"]]
    follower = subprocess.Popen(
        [sys.executable, "-m", "launcher.cli", "logs", run, "-f", "--rank", "2", *at],
        cwd=elsewhere,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert follower.stdout is not None
    assert follower.stdout.readline() == "step 1\n"
    assert "running" in launcher("top", run, *at, folder=elsewhere).stdout

    done = launcher("stop", run, *at, folder=elsewhere)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{run}: stopped\n", "")
    follower.communicate(timeout=200)
    assert follower.returncode == 0
    eventually(lambda: not workers_of_ours())
    eventually(lambda: not groups_and_actors(address))
    assert set(os.listdir("/dev/shm")) <= before
    again = launcher("stop", run, *at, folder=elsewhere)
    assert (again.returncode, "is over: stopped" in again.stderr) == (2, True)


@pytest.mark.parametrize("how", ["Ctrl-C", "kill the driver", "stop --force"])
@pytest.mark.slow
def test_ends_of_other_kinds(tmp_path: Path, address: str, how: str) -> None:
    write(
        tmp_path,
        address,
        {"count": 2},
        SLOW.replace("import os", "import os, signal; signal.signal(15, lambda *_: 0)\nimport os"),
    )
    terminal = subprocess.Popen(
        [sys.executable, "-m", "launcher.cli", "submit", "job.yaml", "--logs"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert terminal.stdout is not None
    assert any("[rank 1] step 3" in line for line in terminal.stdout)
    (folder,) = (tmp_path / "runs").iterdir()
    if how == "Ctrl-C":
        terminal.send_signal(signal.SIGINT)
    elif how == "stop --force":
        done = launcher("stop", "by-address", "--force", folder=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"{folder.name}: stopped\n"), done.stderr
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        assert [event["code"] for event in events if event["event"] == "Exited"] == [-9, -9]
    else:
        owner = json.loads((folder / "launcher.json").read_text())
        os.kill(owner["pid"], signal.SIGKILL)
    out, err = terminal.communicate(timeout=240)
    assert "Traceback" not in err
    if how == "kill the driver":
        assert terminal.returncode == 1
        assert "ended without a summary, FAILED" in err
    else:
        assert terminal.returncode == 130
        assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
        assert "by-address stopped after" in out
    eventually(lambda: not workers_of_ours())
    eventually(lambda: not groups_and_actors(address))


@pytest.mark.slow
def test_what_travels(tmp_path: Path, address: str) -> None:
    """The folder and the environment of the job go to the nodes; the script runs in an unpacked copy."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "secret.py").write_text("word = 'from a module'")
    (tmp_path / "big.bin").write_text("x")
    script = (
        "import os, lib.secret\nfrom launcher import progress\n"
        "progress.note(word=lib.secret.word, cwd=os.getcwd(), files=sorted(os.listdir('.')))\n"
        "progress.note(colour=os.environ['COLOUR'])"
    )
    write(tmp_path, address, {"count": 1}, script)
    sets = ("--set", "cluster.exclude=['*.bin']", "--set", "env.COLOUR=red")
    done = launcher("submit", "job.yaml", "--json", *sets, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    notes = json.loads(done.stdout)["notes"]
    assert (notes["word"], notes["colour"]) == ("from a module", "red")
    assert notes["files"] == [".narrowgauge", "job.yaml", "lib", "show.py"]
    assert "working_dir_files" in notes["cwd"]


@pytest.mark.slow
def test_another_version_on_the_cluster(tmp_path: Path, address: str) -> None:
    write(tmp_path, address, {"count": 1})
    program = (
        "import sys, launcher.remote.client, launcher.cli\nlauncher.remote.client.__version__ = '0.0.7'\n"
        "sys.argv = ['launcher', 'submit', 'job.yaml']\nlauncher.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=240
    )
    assert done.returncode == 1
    assert "the submitter has narrowgauge 0.0.7, this node has" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_cluster_that_jobs_cannot_be_handed_to(tmp_path: Path) -> None:
    """One cluster for two mistakes in its making: the head has no dashboard, and its `python` has no narrowgauge."""
    for address in two_nodes(dashboard=False, path=os.environ["PATH"], **MARKED):
        done = submit(tmp_path, address, {"count": 1})
        assert done.returncode == 1
        assert f"the Ray cluster at {address!r} has no dashboard" in done.stderr
        assert "`ray start --head --include-dashboard=true --dashboard-host=" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "runs").exists()


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    done = submit(tmp_path, "127.0.0.1:1", {"count": 1})
    assert done.returncode == 1
    assert "cannot reach the Ray cluster at '127.0.0.1:1'" in done.stderr
    assert "Traceback" not in done.stderr
