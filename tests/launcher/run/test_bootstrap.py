"""Projects that have a `launcher.py` or a `collectives/` of their own, under workers, agents and drivers of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.bootstrap import PACKAGES, taken_names
from launcher.record.events import Event, Exited, Noted
from launcher.remote.packing import BOOTSTRAP
from launcher.run.agent import Agent, WorkerSpec
from tests.launcher.two_nodes import two_nodes
from tests.paths import REPOSITORY

CONSOLE = "import sys; sys.path.pop(0); from launcher.cli import main; sys.exit(main())"
"""What the console command does; `-c` puts the working directory on the path, a script in bin doesn't."""

TRAIN = """
import json, multiprocessing, os, sys
import collectives, launcher
from collectives.data import Squares
from launcher import START

def main():
    import torch, torch.distributed as dist
    from torch.utils.data import DataLoader
    os.chdir("/")
    dist.init_process_group("gloo")
    values = torch.full((10007,), float(dist.get_rank() + 1))
    dist.all_reduce(values)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    for (batch,) in DataLoader(Squares(), batch_size=2, num_workers=1, multiprocessing_context="spawn"):
        model(batch).sum().backward()
    child = multiprocessing.get_context("spawn").Pool(1)
    found = {
        "sum": values.unique().tolist(), "group": dist.group.WORLD.name(), "start": START,
        "own": [collectives.__name__, collectives.__file__, launcher.__file__, Squares.__module__],
        "child": child.apply(Squares.where),
    }
    child.close()
    dist.destroy_process_group()
    with open(os.path.join(os.environ["FOUND"], os.environ["RANK"]), "w") as file:
        json.dump(found, file)

if __name__ == "__main__":
    main()
"""
DATA = """
import torch

class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return (torch.tensor([float(index**2)]),)
    @staticmethod
    def where():
        import collectives
        return collectives.__file__
"""


def project(folder: Path) -> Path:
    """A script and neighbours that have our names."""
    (folder / "collectives").mkdir(parents=True)
    (folder / "launcher.py").write_text("START = 'mine'\n")
    (folder / "collectives" / "__init__.py").write_text("print('my own collectives')\n")
    (folder / "collectives" / "data.py").write_text(DATA)
    (folder / "train.py").write_text(TRAIN)
    return folder


def submit(folder: Path, **job: Any) -> subprocess.CompletedProcess[str]:
    """`launcher submit`, as the console command, in the project's folder."""
    found = folder.parent / "found"
    found.mkdir(exist_ok=True)
    everything = {"name": "shadow", "workers": {"count": 2, "hosts": 2}, "env": {"FOUND": str(found)}, **job}
    (folder / "job.yaml").write_text(json.dumps(everything))
    return subprocess.run(
        [sys.executable, "-c", CONSOLE, "submit", "job.yaml", "--json"], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=280,
    )  # fmt: skip


def check(done: subprocess.CompletedProcess[str], folder: Path, *, travelled: bool = False) -> None:
    summary = json.loads(done.stdout) if done.stdout else {}
    logs = "".join(path.read_text() for path in (folder / "runs").glob("*/logs/*"))
    assert done.returncode == 0, done.stderr + logs
    assert summary["collectives"]["ops"] >= 2
    assert logs.count("my own collectives") >= 2
    for rank in range(2):
        found = json.loads((folder.parent / "found" / str(rank)).read_text())
        name, *files, data = found["own"]
        assert (found["sum"], found["start"]) == ([3.0], "mine")
        assert (name, data) == ("collectives", "collectives.data")
        assert [Path(file).name for file in files] == ["__init__.py", "launcher.py"]
        assert found["child"] == files[0]
        assert not Path(files[0]).is_relative_to(REPOSITORY)
        assert travelled or Path(files[0]).is_relative_to(folder)


@pytest.mark.slow
@pytest.mark.parametrize("entrypoint", ["train.py", "train", "train:main"])
def test_a_project_with_our_names_finds_its_own_and_trains_over_our_backend(tmp_path: Path, entrypoint: str) -> None:
    folder = project(tmp_path / "project")
    check(submit(folder, entrypoint=entrypoint), folder)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    yield from two_nodes()


@pytest.mark.slow
def test_a_project_with_our_names_on_a_cluster(tmp_path: Path, address: str) -> None:
    folder = project(tmp_path / "project")
    check(submit(folder, entrypoint="train.py", cluster={"address": address}), folder, travelled=True)


# ---- one worker, without Ray ---------------------------------------------------------------------------------------


def noted(folder: Path, script: str, entrypoint: str = "train.py", **env: str) -> tuple[dict[str, Any], str]:
    """What a script tells by `progress.note`, and its log."""
    path = folder / (entrypoint if entrypoint.endswith(".py") else f"{entrypoint.partition(':')[0]}.py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(script)
    (folder / "logs").mkdir(exist_ok=True)
    log = folder / "logs" / "rank-0.log"
    agent = Agent()
    env = {"NARROWGAUGE_BACKEND": "gloo", "NARROWGAUGE_CODEC": "none", "RANK": "0", **env}
    agent.start(WorkerSpec(0, entrypoint, (), env, str(folder), log, "127.0.0.1"))
    events: list[Event] = []
    while not any(isinstance(event, Exited) for event in events):
        new = agent.next_events(timeout_s=60)
        assert new
        events += new
    notes = [event.values for event in events if isinstance(event, Noted)]
    return {name: value for values in notes for name, value in values.items() if name != "collectives"}, log.read_text()


OURS = "import collectives, sys\nfrom launcher import progress\n"


def test_a_script_that_has_no_such_neighbour_gets_ours(tmp_path: Path) -> None:
    """One elsewhere in the project is no neighbour of it, and a folder without __init__.py is no package."""
    (tmp_path / "launcher.py").write_text("")
    (tmp_path / "scripts" / "collectives").mkdir(parents=True)
    script = OURS + "progress.note(file=collectives.__file__, name=progress.__name__, path=sys.path[0])\n"
    told, log = noted(tmp_path, script, "scripts/train.py")
    wanted = {
        "file": str(REPOSITORY / "collectives" / "__init__.py"),
        "name": "launcher.progress",
        "path": str(tmp_path / "scripts"),
    }
    assert told == wanted, log


def test_the_name_that_a_project_does_not_have_stays_ours(tmp_path: Path) -> None:
    (tmp_path / "collectives.py").write_text("WORD = 'mine'\n")
    script = OURS + "progress.note(word=collectives.WORD)\nprogress.report(1, loss=0.5)\n"
    told, log = noted(tmp_path, script)
    assert told == {"word": "mine"}, log


def test_our_own_entrypoints_are_found_beside_a_project_with_our_names(tmp_path: Path) -> None:
    project(tmp_path / "project")
    (tmp_path / "project" / "logs").mkdir()
    log = tmp_path / "project" / "logs" / "rank-0.log"
    env = {"NARROWGAUGE_BACKEND": "gloo", "NARROWGAUGE_CODEC": "none", "RANK": "0"}
    agent = Agent()
    folder = str(tmp_path / "project")
    agent.start(WorkerSpec(0, "launcher.commands.bench:work", (), env, folder, log, "127.0.0.1"))
    while not any(isinstance(event, Exited) for event in agent.next_events(timeout_s=60)):
        pass
    assert f'File "{REPOSITORY}/launcher/commands/bench.py", line' in log.read_text()  # which asks for WORLD_SIZE


def test_a_traceback_begins_in_the_users_code(tmp_path: Path) -> None:
    (tmp_path / "launcher.py").write_text("def boom():\n    raise KeyError('x')\n")
    _, log = noted(tmp_path, "import launcher\nlauncher.boom()\n")
    assert log.startswith(f'Traceback (most recent call last):\n  File "{tmp_path}/train.py", line 2, in <module>')
    assert log.count("File ") == 2


def test_names_count_as_taken_where_python_would_find_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert taken_names(str(tmp_path)) == []
    assert taken_names(str(tmp_path / "mine")) == list(PACKAGES)
    assert taken_names(str(REPOSITORY)) == []
    monkeypatch.setattr(sys, "path", [str(tmp_path / "mine"), *sys.path])
    assert taken_names(str(tmp_path)) == list(PACKAGES)
    monkeypatch.chdir(tmp_path / "mine")
    assert taken_names(str(tmp_path)) == []


def test_another_copy_of_ours_is_not_the_users(tmp_path: Path) -> None:
    """Submitting from a checkout with an installed launcher, say: a process must not have two of our engines."""
    for name in ("collectives/__init__.py", "collectives/version.py", "launcher/__init__.py", "launcher/run/worker.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert taken_names(str(tmp_path)) == []
    (tmp_path / "launcher/run/worker.py").unlink()
    assert taken_names(str(tmp_path)) == list(PACKAGES)


# ---- processes that Ray starts, without Ray ------------------------------------------------------------------------


def run_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python that has the project's folder in front of ours on its path, as in a job of Ray's."""
    return subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"},
    )  # fmt: skip


def test_an_actor_class_is_unpickled_beside_a_project_with_our_names(tmp_path: Path) -> None:
    from ray import cloudpickle

    from launcher.run import cluster

    sent = cloudpickle.dumps(cluster.stand_in(Agent)).hex()
    program = (
        "import pickle, sys\nagent = pickle.loads(bytes.fromhex(sys.argv[1]))()\nprint(agent.version())\n"
        "import launcher; print(launcher.__file__)"
    )
    done = run_in(project(tmp_path / "project"), "-c", program, sent)
    assert done.stdout.split() == [Agent().version(), str(REPOSITORY / "launcher" / "__init__.py")], done.stderr


def test_a_driver_starts_beside_a_project_with_our_names(tmp_path: Path) -> None:
    folder = project(tmp_path / "project")
    (folder / BOOTSTRAP).write_bytes((REPOSITORY / "launcher" / "bootstrap.py").read_bytes())
    done = run_in(folder, BOOTSTRAP, "launcher.remote.driver")
    assert "KeyError: 'RAY_JOB_CONFIG_JSON_ENV_VAR'" in done.stderr
