"""What the docs say is true: links lead somewhere, samples parse, commands run."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config import job_file
from tests.paths import REPOSITORY

DOCS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CI = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


def samples(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


GUIDES = {path.name: path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "docs").glob("*.md"))}


COMMANDS = [line for block in samples("bash") for line in block.splitlines() if line]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert not missing


def test_paths_that_are_named_exist() -> None:
    named = set(re.findall(r"`((?:collectives|launcher|tests|configs)/[\w./-]+)`", "".join(map(Path.read_text, DOCS))))
    assert named
    assert not [name for name in named if not (REPOSITORY / name).exists()]


def test_ci_runs_the_readmes_two_commands() -> None:
    install_and_submit, install_and_test = COMMANDS[:2]
    assert install_and_test in CI
    assert install_and_submit.removeprefix("pip install -e . && ") in CI


def test_job_sample_is_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sample,) = samples("yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    (tmp_path / "job.yaml").write_text(sample)
    job = job_file.load(tmp_path / "job.yaml", [])
    assert (job.workers.count, job.workers.hosts, job.cluster.address) == (4, 2, None)
    assert job.args == ["--epochs", "3"]


@pytest.mark.parametrize("sample", [each for text in (README, *GUIDES.values()) for each in samples("python", text)])
def test_python_samples_compile(sample: str) -> None:
    ast.parse(sample)


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("torchrun")])
def test_torchrun_commands_run(command: str, tmp_path: Path) -> None:
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "loss" in done.stdout


def test_explain_command_runs(tmp_path: Path) -> None:
    (command,) = re.findall(r"`python -m (collectives explain [^`]+)`", README)
    assert "bottleneck" in run(f"python -m {command}", tmp_path).stdout


@pytest.mark.parametrize("name", GUIDES)
def test_commands_of_guides_run(name: str, tmp_path: Path) -> None:
    for command in [line for block in samples("bash", GUIDES[name]) for line in block.splitlines() if line]:
        keeps = f" --set runs_dir={tmp_path}" if command.startswith("launcher submit") else ""
        done = run(command + keeps, REPOSITORY)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", GUIDES)
def test_launcher_commands_that_guides_name_are_there(name: str) -> None:
    named = set(re.findall(r"^ *launcher (\w+)|`launcher (\w+)", GUIDES[name], re.MULTILINE))
    for word in {first or second for first, second in named}:
        assert run(f"launcher {word} --help", REPOSITORY).returncode == 0, word


def test_plan_command_runs(tmp_path: Path) -> None:
    (command,) = [each for each in COMMANDS if each.startswith("launcher plan")]
    done = run(command.replace("configs/", f"{REPOSITORY}/configs/"), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2.5" in done.stdout
    assert "15.2" in done.stdout or "15.16" in done.stdout


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    start = {"torchrun": ["-m", "torch.distributed.run"], "python": [], "launcher": ["-m", "launcher.cli"]}[program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *start, *arguments], capture_output=True, text=True, cwd=folder, env=environment, timeout=200
    )
