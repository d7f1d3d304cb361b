"""What a program is: how to start it, what it needs, and what of its output counts."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

GLOO, OURS = "gloo", "narrowgauge"
OWN = Path(__file__).resolve().parent / "programs"


@dataclass(frozen=True)
class Clone:
    """A repository, which the user has cloned into the folder of programs.

    Attributes:
        name: folder of the clone.
        url: what to clone.
        folder: where in it the program runs; a script's relative paths start there.
    """

    name: str
    url: str
    folder: str = "."

    def command(self, programs: Path | None) -> str:
        """How the user gets it."""
        return f"git clone {self.url} {(programs or Path('DIR')) / self.name}"


@dataclass(frozen=True)
class Program:
    """A program that is run over Gloo and over ours.

    Attributes:
        name: by which `--only` chooses it.
        script: path below the clone's folder; below programs/ if there is no clone or it begins with "own:".
        arguments: of the script.
        processes: ranks; 1 starts the script without torchrun.
        packages: distributions that must be installed; the first is the program whose version is shown.
        clone: a repository that must be there.
        prepare: makes the program's data in its working folder.
        prints: expression for what counts in the lines that ranks print: its groups, or all of the match.
        device: "cpu", or "accelerator" for a script that insists on one; see `as_cpu`.
        excused: values that Gloo prints and ours need not, with the reason.
        tolerance: relative difference of numbers that is allowed. 0 where no sum has more than two summands, which have
            one result; the sum of more depends on the order, and a backend is free to choose it.
        timeout_s: seconds after which a run has failed.
    """

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    processes: int = 2
    packages: tuple[str, ...] = ()
    clone: Clone | None = None
    prepare: Callable[[Path], None] | None = None
    prints: str | None = None
    device: str = "cpu"
    excused: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 0.0
    timeout_s: float = 240.0

    def missing(self, programs: Path | None) -> str | None:
        """What has to be installed first, as a command; None if all is there.

        Args:
            programs: the folder with the user's clones.
        """
        absent = [name for name in self.packages if _version(name) is None]
        if absent:
            return f"pip install {' '.join(absent)}"
        if self.clone and not (programs and (programs / self.clone.name).is_dir()):
            return f"{self.clone.command(programs)}, and --programs {programs or 'DIR'}"
        return None

    def version(self, programs: Path | None) -> str:
        """The version of the package or commit of the clone, which must be there; torch's if the program is torch's."""
        if self.clone and programs:
            shown = subprocess.run(
                ["git", "-C", str(programs / self.clone.name), "log", "-1", "--format=%h %cs"],
                capture_output=True, text=True,
            )  # fmt: skip
            return shown.stdout.strip() or "no commit"
        name = self.packages[0] if self.packages else "torch"
        return f"{name} {_version(name)}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
