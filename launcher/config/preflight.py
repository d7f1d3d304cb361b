"""What a job file points to is there, and what it asks for fits: scripts, modules, folders, packages, this machine."""

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
MEMORY_PER_WORKER_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class LocalMachine:
    """What the local machine can carry: usable cores and free memory in bytes."""

    cores: int
    memory_bytes: int

    @classmethod
    def here(cls) -> LocalMachine:
        return cls(cores=len(os.sched_getaffinity(0)), memory_bytes=psutil.virtual_memory().available)


def check_files(job: Job, document: Document) -> None:
    if is_file(job.entrypoint):
        _check_script(job.entrypoint, document.place(("entrypoint",)))
    else:
        _check_module(job.entrypoint, document.place(("entrypoint",)))
    topology = job.collectives.topology
    if topology and not Path(topology).is_file():
        place = document.place(("collectives", "topology"))
        raise missing(place, f"no topology file {topology!r}", Path(topology), "*.json")


def check_travels(job: Job, document: Document) -> None:
    """See that the job's files lie in the working directory, which goes to every node of a cluster. An absolute path
    elsewhere is one that every node has."""
    named: dict[ValuePath, str | None] = {
        ("entrypoint",): job.entrypoint if is_file(job.entrypoint) else None,
        ("collectives", "topology"): job.collectives.topology,
    }
    for path, file in named.items():
        if file and not Path(file).is_absolute() and not Path(file).resolve().is_relative_to(Path.cwd()):
            raise ConfigError(
                document.place(path),
                "a file outside the working directory, which is what travels to the cluster",
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
            "a file cannot have a function after it",
            got=entrypoint,
            wanted="file.py, package.module or package.module:function",
            nearest=f"{module}:{function}" if all(part.isidentifier() for part in module.split(".")) else None,
        )
    if not Path(entrypoint).is_file():
        raise missing(place, f"no script {entrypoint!r}", Path(entrypoint), "*.py")


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
    """What a module defines, by its source; None if that cannot tell."""
    try:
        tree = ast.parse(Path(module.origin or "").read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    names = set(_bound(tree))
    return None if names & {"*", "__getattr__", "globals", "exec"} else names


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a module's own statements bind or, as what may bind others, use."""
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
    """See that the folder can be made and written to; leaves nothing behind."""
    folder = Path(job.runs_dir).resolve()
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            document.place(("runs_dir",)),
            "no folder for runs can be there",
            got=f"{folder} ({error.strerror})",
            wanted="a folder that is there or can be made, and can be written to",
            next_step="name another one with runs_dir",
        ) from None
    finally:
        for each in made:
            with suppress(OSError):
                each.rmdir()


def check_tensorboard(job: Job, document: Document) -> None:
    if job.tensorboard and _find("tensorboard", None) is None:
        raise ConfigError(
            document.place(("tensorboard",)),
            "the package tensorboard is not installed here",
            got="tensorboard: true",
            wanted="tensorboard: false, or the package",
            next_step="pip install 'narrowgauge[tensorboard]'",
        )


def missing(place: SourcePosition, what: str, path: Path, pattern: str) -> ConfigError:
    """The error of a file that isn't there, with what its folder has instead."""
    folder = path.parent
    names = sorted(found.name for found in folder.glob(pattern)) if folder.is_dir() else []
    meant = nearest(path.name, names)
    examples = f", such as {', '.join(names[:6])}" if names else ""
    return ConfigError(
        place,
        what,
        got=str(path),
        wanted=f"a file in {folder.resolve()}{examples}" if folder.is_dir() else f"a folder {folder.resolve()}",
        nearest=str(folder / meant) if meant else None,
        next_step=f"correct the path; relative ones start at {Path.cwd()}",
    )


def _module(name: str) -> importlib.machinery.ModuleSpec | None:
    """What `import name` would find from the working directory; imports nothing, not even parent packages."""
    path: list[str] | None = None
    spec: importlib.machinery.ModuleSpec | None = None
    for depth, _ in enumerate(parts := name.split("."), start=1):
        spec = _find(".".join(parts[:depth]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    return spec


def _find(name: str, path: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    here = importlib.machinery.PathFinder.find_spec(name, [os.getcwd(), *sys.path]) if path is None else None
    found = (finder.find_spec(name, path) for finder in sys.meta_path)
    return here or next((spec for spec in found if spec), None)


def fitted(job: Job, document: Document, machine: LocalMachine) -> Job:
    """Refuse more workers than could make progress: they may share cores, up to a bound, and each needs memory. Where
    fewer will do, that many."""
    by_cores = machine.cores * WORKERS_PER_CORE // job.workers.cpus
    by_memory = machine.memory_bytes // MEMORY_PER_WORKER_BYTES
    most = min(by_cores, by_memory)
    if job.workers.least <= most < job.workers.count:
        return job.model_copy(update={"workers": job.workers.model_copy(update={"count": most})})
    if job.workers.count > most:
        raise ConfigError(
            document.place(("workers", "count")),
            "more workers than this machine can carry",
            got=f"{job.workers.count} workers of {job.workers.cpus} CPU(s) each",
            wanted=f"at most {min(by_cores, by_memory)}: {machine.cores} cores at {WORKERS_PER_CORE} CPUs each carry "
            f"{by_cores}, {machine.memory_bytes / 1024**3:.1f} GiB of free memory at 512 MiB each carry {by_memory}",
            next_step="lower workers.count, or name a larger cluster with cluster: {address: ...}",
        )
    return job
