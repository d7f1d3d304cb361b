"""The command as a user meets it: a process, its output and its exit status. Nothing here starts Ray."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from collectives import __version__
from tests.paths import REPOSITORY


def launcher(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", "PYTHONPATH": str(REPOSITORY)},
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: demo\nentrypoint: train.py\nworkers: 2\ncolour: red\n", "line 4, column 1: unknown key 'colour'"),
        ("name: demo\nentrypoint: train.py\nworkers: 2\n", "line 2, column 13: no script 'train.py'"),
        ("name: demo\nworkers: [\n", "not YAML"),
    ],
)
def test_a_mistake_in_the_file_is_status_2_and_starts_nothing(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    done = launcher("submit", "job.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


@pytest.mark.parametrize(
    "arguments", [["submit", "nowhere.yaml"], ["submit"], ["submt"], ["submit", "x", "--sett", "a=1"]]
)
def test_a_mistake_in_the_command_is_status_2(arguments: list[str]) -> None:
    done = launcher(*arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_the_schema_names_every_key_with_its_meaning() -> None:
    done = launcher("schema")
    schema = json.loads(done.stdout)
    assert done.returncode == 0
    assert schema["required"] == ["name", "entrypoint", "workers"]
    sections = [schema, *schema["$defs"].values()]
    fields = {name: field for section in sections for name, field in section["properties"].items()}
    assert [name for name, field in fields.items() if "description" not in field] == []


def test_the_version() -> None:
    assert launcher("--version").stdout == f"narrowgauge {__version__}\n"


def test_output_that_nobody_reads() -> None:
    """The reader takes nothing at all and is gone before the first line."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", "schema"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "the reader of the output is gone; the run continues\n")


@pytest.mark.parametrize("module", ["typer", "launcher.config", "ray"])
def test_ctrl_c_during_the_imports_is_quiet(tmp_path: Path, module: str) -> None:
    (tmp_path / "job.yaml").write_text("name: demo\nentrypoint: launcher.examples.plain_ddp\nworkers: 1\n")
    program = (
        "import os, runpy, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        f"sys.argv = ['launcher', 'submit', {str(tmp_path / 'job.yaml')!r}]\n"
        "runpy.run_module('launcher.cli', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_error_is_reported_without_waiting_for_ray_or_torch() -> None:
    program = "import sys, launcher.cli, launcher.run.agent; print([n for n in ('ray', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("library", "files"),
    [("ray", ["cluster.py", "prometheus.py", "ray_jobs.py"]), ("yaml", ["job_file.py"]), ("jinja2", ["page.py"])],
)
def test_fences(library: str, files: list[str]) -> None:
    statement = re.compile(rf"^\s*(import|from) {library}\b", re.MULTILINE)
    paths = (REPOSITORY / "launcher").rglob("*.py")
    assert sorted(path.name for path in paths if statement.search(path.read_text())) == files
