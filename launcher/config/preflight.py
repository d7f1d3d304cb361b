"""Checks before a start: what a job file names exists, and what it asks for fits on this machine.

Each check raises a ConfigError at the line of the key. Nothing of the user's is imported or run: an entrypoint may take
a minute to import, or start training at import.
"""

from __future__ import annotations

import ast
import importlib.machinery
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from launcher.config.document import Document, ValuePath
from launcher.config.job import Job, is_file
from launcher.config.validation_errors import nearest
from launcher.errors import ConfigError, SourcePosition

WORKERS_PER_CORE = 4
"""Workers may share cores, so that a small machine can try a large job; beyond this many nothing progresses."""
MEMORY_PER_WORKER_BYTES = 512 * 1024**2
"""About what a process takes that has imported torch and holds a small model."""


@dataclass(frozen=True)
class LocalMachine:
    """The resources of this machine: usable cores, and free memory in bytes."""

    cores: int
    memory_bytes: int

    @classmethod
    def here(cls) -> LocalMachine:
        """Measured now. Cores are those of this process, which a container may have limited."""
        return cls(cores=len(os.sched_getaffinity(0)), memory_bytes=psutil.virtual_memory().available)


def check_files(job: Job, document: Document) -> None:
    """Check that the entrypoint and the topology file exist."""
    if is_file(job.entrypoint):
        _check_script(job.entrypoint, document.place(("entrypoint",)))
    else:
        _check_module(job.entrypoint, document.place(("entrypoint",)))
    topology = job.collectives.topology
    if topology and not Path(topology).is_file():
        place = document.place(("collectives", "topology"))
        raise missing_file(place, f"no topology file {topology!r}", Path(topology), "*.json")


def check_uploadable(job: Job, document: Document) -> None:
    """Check that the job's files are in the working directory, which is uploaded to every node of a cluster. An
    absolute path is taken as one that every node has."""
    named: dict[ValuePath, str | None] = {
        ("entrypoint",): job.entrypoint if is_file(job.entrypoint) else None,
        ("collectives", "topology"): job.collectives.topology,
    }
    for path, file in named.items():
        if file and not Path(file).is_absolute() and not Path(file).resolve().is_relative_to(Path.cwd()):
            raise ConfigError(
                document.place(path),
                "a file outside the working directory, which is all that is uploaded to the cluster",
                got=f"{file}, which is {Path(file).resolve()}",
                wanted=f"a path below {Path.cwd()}, or an absolute one that every node has",
                next_step="submit from a folder that the file is in",
            )


def _check_script(entrypoint: str, place: SourcePosition) -> None:
    file, colon, function = entrypoint.rpartition(":")
    if colon and file.endswith(".py"):
        module = file.removesuffix(".py").removeprefix("./").replace("/", ".")
        raise ConfigError(
            place,
            "a function can be named in a module, not in a file",
            got=entrypoint,
            wanted="file.py, package.module or package.module:function",
            nearest=f"{module}:{function}" if all(part.isidentifier() for part in module.split(".")) else None,
        )
    if not Path(entrypoint).is_file():
        raise missing_file(place, f"no script {entrypoint!r}", Path(entrypoint), "*.py")


def _check_module(entrypoint: str, place: SourcePosition) -> None:
    name, _, function = entrypoint.partition(":")
    module = _module(name)
    if module is None:
        raise ConfigError(
            place,
            f"no module {name!r}",
            got=entrypoint,
            wanted="file.py, package.module or package.module:function that can be imported here",
            next_step=f"install it, or submit from the folder that it can be imported from (now {Path.cwd()})",
        )
    names = _names_in(module) if function else None
    if names is not None and function not in names:
        raise ConfigError(
            place,
            f"no function {function!r} in module {name!r}",
            got=entrypoint,
            wanted=f"a function of {module.origin}",
            nearest=nearest(function, sorted(names)),
        )


def _names_in(module: importlib.machinery.ModuleSpec) -> set[str] | None:
    """Names that a module defines, by its source; None if the source cannot say.

    It cannot if there is none (an extension module), or if names come from a star import, `__getattr__` or `exec`.
    """
    try:
        tree = ast.parse(Path(module.origin or "").read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    names = set(_bound(tree))
    return None if names & {"*", "__getattr__", "globals", "exec"} else names


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that the statements of a module bind. Names that it only uses are among them, since `globals()` or
    `exec(...)` may bind others; a name too many merely lets a missing function pass."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child.name
            continue
        if isinstance(child, ast.alias):
            yield child.asname or child.name.partition(".")[0]
        elif isinstance(child, ast.Name):
            yield child.id
        yield from _bound(child)


def check_runs_dir(job: Job, document: Document) -> None:
    """Check that the folder for runs can be created and written to. Leaves nothing behind."""
    folder = Path(job.runs_dir).resolve()
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            document.place(("runs_dir",)),
            "cannot create the folder for runs",
            got=f"{folder} ({error.strerror})",
            wanted="a folder that exists or can be created, and is writable",
            next_step="name another one with runs_dir",
        ) from None
    finally:
        for each in made:
            with suppress(OSError):
                each.rmdir()


def check_tensorboard(job: Job, document: Document) -> None:
    """Check that the optional package is installed, if the job needs it."""
    if job.tensorboard and _find("tensorboard", None) is None:
        raise ConfigError(
            document.place(("tensorboard",)),
            "the package tensorboard is not installed here",
            got="tensorboard: true",
            wanted="tensorboard: false, or the package",
            next_step="pip install 'narrowgauge[tensorboard]'",
        )


def missing_file(place: SourcePosition, what: str, path: Path, pattern: str) -> ConfigError:
    """The error for a file that does not exist, with the files that its folder has."""
    folder = path.parent
    names = sorted(found.name for found in folder.glob(pattern)) if folder.is_dir() else []
    close = nearest(path.name, names)
    examples = f", such as {', '.join(names[:6])}" if names else ""
    return ConfigError(
        place,
        what,
        got=str(path),
        wanted=f"a file in {folder.resolve()}{examples}" if folder.is_dir() else f"a folder {folder.resolve()}",
        nearest=str(folder / close) if close else None,
        next_step=f"correct the path; relative ones start at {Path.cwd()}",
    )


def _module(name: str) -> importlib.machinery.ModuleSpec | None:
    """What `import name` would find from the working directory.

    `importlib.util.find_spec` would import the parent packages to get their paths. This walks down the paths instead.
    """
    path: list[str] | None = None
    spec: importlib.machinery.ModuleSpec | None = None
    for depth, _ in enumerate(parts := name.split("."), start=1):
        spec = _find(".".join(parts[:depth]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    return spec


def _find(name: str, path: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    # `python -m` puts the working directory first; the launcher's own sys.path does not have it.
    here = importlib.machinery.PathFinder.find_spec(name, [os.getcwd(), *sys.path]) if path is None else None
    found = (finder.find_spec(name, path) for finder in sys.meta_path)
    return here or next((spec for spec in found if spec), None)


def fit_workers(job: Job, document: Document, machine: LocalMachine) -> Job:
    """The job with as many workers as this machine has room for, if workers.min allows fewer than workers.count.

    Raises:
        ConfigError: fewer fit than are needed.
    """
    by_cores = machine.cores * WORKERS_PER_CORE // job.workers.cpus
    by_memory = machine.memory_bytes // MEMORY_PER_WORKER_BYTES
    most = min(by_cores, by_memory)
    if job.workers.least <= most < job.workers.count:
        return job.model_copy(update={"workers": job.workers.model_copy(update={"count": most})})
    if job.workers.count > most:
        raise ConfigError(
            document.place(("workers", "count")),
            "more workers than this machine has room for",
            got=f"{job.workers.count} workers of {job.workers.cpus} CPU(s) each",
            wanted=f"at most {most}: {machine.cores} cores at {WORKERS_PER_CORE} CPUs each have room for {by_cores}, "
            f"{machine.memory_bytes / 1024**3:.1f} GiB of free memory at 512 MiB each for {by_memory}",
            next_step="lower workers.count, or name a larger cluster with cluster: {address: ...}",
        )
    return job
