"""Ray in a lab: jobs on a cluster whose nodes are namespaces."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from launcher.config import job_file
from launcher.lab import inside, life, network, ray_nodes
from launcher.lab.record import LabRecord
from tests.launcher.labs import LAB, REPOSITORY, command, in_lab, launcher, left, wait_until, write

SUM = """
import socket
import torch, torch.distributed as dist
from launcher import progress
dist.init_process_group("gloo")
values = torch.full((10007,), float(dist.get_rank() + 1))
dist.all_reduce(values)
progress.note(**{f"rank{dist.get_rank()}": [socket.gethostname(), values.unique().tolist()]})
dist.destroy_process_group()
"""


STEPS = """
import time
from launcher import progress
for step in range(1, 10_000):
    print("step", step, flush=True)
    progress.report(step, loss=1 / step, tokens=10)
    time.sleep(0.1)
"""


class TestRay:
    pytestmark = in_lab

    @pytest.mark.slow
    def test_a_job_on_the_labs_ray_cluster(self, tmp_path: Path) -> None:
        hosts = "".join(f"  - {{name: {name}, mbit: 100, ranks: 2}}\n" for name in "ab")
        write(tmp_path, f"name: {LAB}\nhosts:\n{hosts}")
        (tmp_path / "sum.py").write_text(SUM)
        (tmp_path / "job.yaml").write_text(
            "name: in-lab\nentrypoint: sum.py\nworkers: {count: 4, hosts: 2}\ncollectives: {backend: gloo}\n"
            "cluster: {address: auto}\n"
        )
        try:
            done = launcher("lab", "run", "lab.yaml", "--", "launcher", "submit", "job.yaml", "--json", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert "Ray is at 10.77.0.101:6379" in done.stderr
            summary = json.loads(done.stdout)
            assert summary["hosts"] == ["a (10.77.0.101): ranks 0, 1", "b (10.77.0.102): ranks 2, 3"]
            assert summary["notes"] == {f"rank{rank}": ["aabb"[rank], [10.0]] for rank in range(4)}
            assert not left()
        finally:
            life.down(LAB)

    @pytest.mark.slow
    def test_a_run_outlives_its_terminal_and_is_fetched_by_another_host(self, tmp_path: Path) -> None:
        """Submitted on host b into a folder that only b has, terminal closed, followed from a, stopped from a."""
        hosts = "".join(f"  - {{name: {name}, mbit: 100}}\n" for name in "ab")
        made = life.up(job_file.load_lab(write(tmp_path, f"name: {LAB}\nhosts:\n{hosts}")), "lab.yaml", ray=True)

        def at(index: int, *command: str, **pipes: Any) -> subprocess.Popen[bytes]:
            folder = tmp_path / made.lab.hosts[index].name
            folder.mkdir(exist_ok=True)
            words = f"cd {folder} && mkdir -p runs && mount -t tmpfs none runs && exec {shlex.join(command)}"
            env = {**ray_nodes.environment(made), "PYTHONPATH": str(REPOSITORY)}
            return inside.start(made.lab, index, ["sh", "-c", words], env=env, **pipes)

        def said(*arguments: str) -> str:
            process = at(0, *command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            return process.communicate(timeout=240)[0].decode()

        row = {"run": "none"}
        try:
            (tmp_path / "b").mkdir()
            (tmp_path / "b" / "show.py").write_text(STEPS)
            (tmp_path / "b" / "job.yaml").write_text(
                "name: far\nentrypoint: show.py\nworkers: {count: 2, hosts: 2}\ncollectives: {backend: gloo}\n"
                f"cluster: {{address: '{ray_nodes.address(made.lab)}'}}\n"
            )
            terminal = at(1, *command("submit", "job.yaml", "--logs"), stdout=subprocess.PIPE)
            assert terminal.stdout is not None
            assert any(b"[rank 1] step 3" in line for line in terminal.stdout)
            terminal.send_signal(signal.SIGHUP)
            assert terminal.wait(timeout=120) == -signal.SIGHUP
            (row,) = json.loads(said("list", "--json"))
            told = json.loads(said("status", row["run"], "--json"))
            assert [(rank["host"], rank["address"], rank["state"]) for rank in told["ranks"]] == [
                ("a", "10.77.0.101", "running"),
                ("b", "10.77.0.102", "running"),
            ]
            assert {rank["interface"] for rank in told["ranks"]} == {network.INTERFACE}
            follower = at(0, *command("logs", row["run"], "-f"), stdout=subprocess.PIPE)
            assert said("stop", row["run"]) == f"{row['run']}: stopped\n"
            lines = follower.communicate(timeout=120)[0].decode().splitlines()
            assert {"[rank 0] step 3", "[rank 1] step 3"} <= set(lines)
            wait_until(lambda: not [words for words in living(made) if b"launcher.run.worker" in words], 120)
            assert not [
                words for words in living(made) if b"launcher.remote.driver" in words or b"ray::Agent\0" in words
            ]
        finally:
            shutil.rmtree(Path.home() / "narrowgauge" / row["run"], ignore_errors=True)
            life.down(LAB)


def living(made: LabRecord) -> list[bytes]:
    """Command lines of all that lives in a lab."""
    found = []
    for pid in network.pids(made.namespaces):
        with suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return found
