"""The `launcher` command line as the documentation uses it, checked without being carried out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from launcher.cli import app
from launcher.config import job_file
from tests.paths import REPOSITORY

LOADS_A_JOB = ("submit", "probe", "plan", "bench")


def find(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command or group of commands that words begin with, and the words after its name."""
    command, rest = typer.main.get_command(app), list(words)
    while hasattr(command, "commands") and rest:
        assert rest[0] in command.commands, f"launcher has no command {rest[0]!r}"
        command = command.commands[rest.pop(0)]
    return command, rest


def check(words: Sequence[str]) -> None:
    """That a command line of `launcher` is one: its command, its options, its files below configs/ and their keys."""
    command, rest = find(words)
    parameters = command.make_context(words[0], list(rest)).params
    files = [word for word in rest if word.startswith("configs/")]
    assert all((REPOSITORY / file).is_file() for file in files), words
    if words[0] in LOADS_A_JOB and files:
        job_file.load(REPOSITORY / files[0], list(parameters.get("overrides") or []))
    if "--" in rest and words[:2] == ["lab", "run"]:
        inner = rest[rest.index("--") + 1 :]
        if inner[0] == "launcher":
            check(inner[1:])


def program(word: str) -> list[str]:
    """How to start the program of a documented command with this Python."""
    return {
        "torchrun": [sys.executable, "-m", "torch.distributed.run"],
        "python": [sys.executable],
        "launcher": [sys.executable, "-m", "launcher.cli"],
    }[word]
