"""The commands of the documentation run. What cannot run here is marked with the reason and checked without running."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.docs import commands
from tests.docs.pages import README, Block, blocks
from tests.paths import REPOSITORY

CI = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
PROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
NEVER_RUN = {
    "pip": "it would change the environment of the tests; .ci/run installs into a fresh one",
    "pytest": "it would run itself",
    "mkdocs": "tests/docs/test_site.py builds the site",
    "python3": "CONTRIBUTING.md makes a virtual environment with it",
    "source": "a builtin of the shell, for that environment",
    "pre-commit": "it would change the hooks of this checkout",
}
TWO_COMMANDS = (["launcher", "submit", "configs/quickstart.yaml"],)
"""Of the README, which .ci/run runs; the second, pytest, is in NEVER_RUN."""
SAYS = {
    ("launcher", "plan"): ["2.5", "15.1"],
    ("python", "-m", "collectives", "explain"): ["bottleneck", "bound"],
    ("launcher", "lab", "topology"): ["up_bytes_per_s"],
}
"""What a command prints, by its first words."""


def runnable() -> dict[str, tuple[list[str], Block]]:
    """Each command that runs, once, with the first block that it stands in."""
    found: dict[str, tuple[list[str], Block]] = {}
    for block in blocks("bash"):
        for words in block.commands():
            program = next(word for word in words if "=" not in word)
            if block.excuse is None and program not in NEVER_RUN and words not in TWO_COMMANDS:
                found.setdefault(" ".join(words), (words, block))
    return found


def test_ci_runs_the_readmes_two_commands() -> None:
    first, second = [line for block in blocks("bash") if block.page == README for line in block.text.splitlines()][:2]
    assert first == "pip install -e . && launcher submit configs/quickstart.yaml"
    assert first.removeprefix("pip install -e . && ") in CI
    assert second in CI


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_commands_are_commands(block: Block) -> None:
    for words in block.commands():
        if words[0] == "launcher" and not words[1].startswith("-"):
            commands.check(words[1:])


def test_extras_that_are_installed_exist() -> None:
    section = PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", section, re.MULTILINE)
    text = "".join(block.text for block in blocks("bash") + blocks("text"))
    assert set(re.findall(r"'\.\[(\w+)\]'", text)) <= set(extras)


def by_cost() -> list[Any]:
    """Commands that train are slow: tests/launcher/test_submit.py trains by default."""
    trains = ("launcher submit", "torchrun --nproc-per-node 4 -m launcher.examples")
    return [pytest.param(each, marks=[pytest.mark.slow] * each.startswith(trains)) for each in runnable()]


@pytest.mark.parametrize("command", by_cost())
def test_commands_run(command: str, tmp_path: Path) -> None:
    words, block = runnable()[command]
    more = ["--set", f"runs_dir={tmp_path}"] if words[:2] == ["launcher", "submit"] else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*commands.program(words[0]), *words[1:], *more],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
        timeout=200,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
    for first_words, wanted in SAYS.items():
        if tuple(words[: len(first_words)]) == first_words:
            assert all(text in done.stdout for text in wanted), done.stdout
