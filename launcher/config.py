"""From a job, lab or inventory file to a `Job`, `LabFile` or `Inventory`, or one clear error with its line.

Reading goes text -> YAML nodes -> plain values and the mark of each -> the model. Marks are kept apart from values,
keyed by the same path that pydantic reports ("workers", "count"), so that every mistake can be shown with its line.

This is the only file that reads YAML.
"""

from __future__ import annotations

import ast
import difflib
import importlib.machinery
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import psutil
import yaml
from pydantic import BaseModel, ValidationError

from collectives.errors import PlanError
from collectives.topology import Topology
from launcher import inventory
from launcher.errors import ConfigError, Place
from launcher.inventory import Inventory
from launcher.job import Job, described, is_file
from launcher.lab.file import Contradiction, LabFile, contradictions

WORKERS_PER_CORE = 4
MEMORY_PER_WORKER_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class Machine:
    """What the local machine can carry: usable cores and free memory in bytes."""

    cores: int
    memory_bytes: int

    @classmethod
    def here(cls) -> Machine:
        return cls(cores=len(os.sched_getaffinity(0)), memory_bytes=psutil.virtual_memory().available)


def load(path: Path, overrides: Sequence[str] = (), machine: Machine | None = None, *, elsewhere: bool = False) -> Job:
    """Read a job file, apply `key.key=value` overrides, and check it against this machine.

    Args:
        path: YAML file.
        overrides: as given to `--set`; the value is YAML.
        machine: what the workers must fit on if the cluster is local; None measures this machine.
        elsewhere: the job is only looked at, for other machines than this one.

    Raises:
        ConfigError: the file can't be read, isn't YAML, says something that `Job` has no place for, points to a script
            or a function that isn't there or to a folder that can't be made, wants a package that isn't installed, or
            asks for more than the machine has. The first mistake in the file is the one told.
    """
    document = _read(path)
    for override in overrides:
        document.apply(override)
    try:
        job = Job.model_validate(document.values)
    except ValidationError as error:
        raise _told(error, document) from None
    _check_files(job, document)
    if elsewhere:
        pass  # no files travel, and nothing runs here
    elif job.cluster.address is not None:
        _check_travels(job, document)
    else:
        job = _fitted(job, document, machine or Machine.here())
    _check_runs_dir(job, document)
    _check_tensorboard(job, document)
    return job


def load_resolved(path: Path) -> Job:
    """Read the job in a run's folder, which was checked when the run began.

    Raises:
        ConfigError: it can't be read, or isn't a job of this version.
    """
    document = _read(path)
    try:
        return Job.model_validate(document.values)
    except ValidationError as error:
        raise _told(error, document) from None


def load_lab(path: Path) -> LabFile:
    """Read a lab file.

    Raises:
        ConfigError: as of `load`; and names that stand twice, or sites of hosts that aren't there.
    """
    document = _read(path, LabFile)
    try:
        lab = LabFile.model_validate(document.values)
    except ValidationError as error:
        raise _told(error, document) from None
    _refuse(list(contradictions(lab)), document)
    return lab


def load_inventory(path: Path) -> Inventory:
    """Read an inventory, which is JSON.

    Raises:
        ConfigError: as of `load`; and nodes that stand twice, links of hosts that are no nodes, unknown accelerators.
    """
    document = _read(path, Inventory)
    try:  # once more, as JSON: YAML would take 1e9 for a text
        document.values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        place = Place(str(path), error.lineno, error.colno)
        raise ConfigError(place, "not JSON", got=error.msg, wanted="what `launcher inventory --save` writes") from None
    try:
        found = Inventory.model_validate(document.values)
    except ValidationError as error:
        raise _told(error, document) from None
    _refuse(list(inventory.contradictions(found)), document)
    return found


def with_links(found: Inventory, path: Path) -> Inventory:
    """The inventory with the links of a topology file.

    Raises:
        ConfigError: the file can't be read, is wrong, or is about other hosts.
    """
    try:
        linked = found.model_copy(update={"topology": Topology.load(path)})
    except (PlanError, OSError) as error:
        raise ConfigError(
            Place(str(path)), "no topology", got=str(error), wanted="what `launcher probe --save` writes"
        ) from None
    _refuse(list(inventory.contradictions(linked)), _Document(str(path), Inventory))
    return linked


def checked(job: Job, overrides: Sequence[str]) -> Job:
    """A job that no file says, with overrides.

    Raises:
        ConfigError: as of `load`, for an override.
    """
    document = _Document("the command line", values=job.model_dump())
    for override in overrides:
        document.apply(override)
    try:
        return Job.model_validate(document.values)
    except ValidationError as error:
        raise _told(error, document) from None


def _refuse(found: list[Contradiction], document: _Document) -> None:
    if found:
        first, others = found[0], len(found) - 1
        place = document.place(first.path)
        raise ConfigError(place, first.what, got=first.got, wanted=first.wanted, nearest=first.nearest, others=others)


def to_yaml(job: Job) -> str:
    """The job as a file that `load` reads back to the same job."""
    return yaml.safe_dump(job.model_dump(), sort_keys=False)


# ---- text to values and marks --------------------------------------------------------------------------------------

_Path = tuple[str | int, ...]


@dataclass
class _Document:
    """Plain values of a file, and where each of them stands."""

    source: str
    model: type[BaseModel] = Job
    values: Any = None
    keys: dict[_Path, Place] = field(default_factory=dict)
    places: dict[_Path, Place] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Of what it is a file: "job", "lab" or "inventory"."""
        return {Job: "job", LabFile: "lab"}.get(self.model, "inventory")

    def place(self, path: Sequence[str | int], of_key: bool = False) -> Place:
        """The mark of the value (or key) at the longest part of `path` that is in the file."""
        for length in range(len(path), 0, -1):
            found = (self.keys if of_key else self.places).get(tuple(path[:length]))
            if found:
                return found
        return self.places.get((), Place(self.source))

    def value(self, path: Sequence[str | int]) -> Any:
        """The value at the longest part of `path` that is in the file."""
        value = self.values
        for part in path:
            known = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
            if part not in known:
                break
            value = value[part]
        return value

    def apply(self, override: str) -> None:
        """Set one value as `key.key=value` says."""
        place = Place(f"--set {override}")
        name, equals, text = override.partition("=")
        path = tuple(name.strip().split("."))
        if not equals or not all(path):
            raise ConfigError(place, "an override that sets nothing", got=override, wanted="key=value or key.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(
                place, "the value is not YAML", got=text, wanted="a YAML value, such as 4 or gloo"
            ) from None
        node = self.values
        for depth, part in enumerate(path[:-1], start=1):
            if not isinstance(node.get(part), dict):
                short = {"workers": "count"}.get(path[0]) if depth == 1 else None
                node[part] = {short: node[part]} if short and part in node else {}
            node = node[part]
        node[path[-1]] = value
        for stale in [*self.places]:
            if stale[: len(path)] == path:
                self.places.pop(stale), self.keys.pop(stale, None)
        self.keys[path] = self.places[path] = place


def _read(path: Path, model: type[BaseModel] = Job) -> _Document:
    document = _Document(str(path), model)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _missing(Place(str(path)), "no such file", path, "*.y*ml") from None
    except UnicodeDecodeError as error:
        raise _not_text(path, str(error)) from None
    except OSError as error:
        raise ConfigError(Place(str(path)), "cannot be read", got=str(error), wanted="a YAML text file") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document.values = {} if root is None else _plain(root, (), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(str(path), mark.line + 1, mark.column + 1) if mark else Place(str(path))
        line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        tab = "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in str(error.problem)
        raise ConfigError(
            place,
            "not YAML: a tab where spaces are wanted" if tab else f"not YAML: {error.problem or error.context}",
            got=repr(line.rstrip()),
            wanted="spaces for indentation" if tab else "key: value lines, indented by spaces",
        ) from None
    except yaml.YAMLError as error:
        raise _not_text(path, str(error).splitlines()[0]) from None
    if not isinstance(document.values, dict):
        raise ConfigError(
            document.place(()),
            f"not {'an' if document.kind[0] in 'aeiou' else 'a'} {document.kind}",
            got=described(document.values),
            wanted="keys: " + ", ".join(model.model_fields),
        )
    return document


def _not_text(path: Path, got: str) -> ConfigError:
    return ConfigError(
        Place(str(path)), "not a text file in UTF-8", got=got, wanted="a YAML text file", next_step="save it as UTF-8"
    )


_SAFE_TAGS: dict[type[yaml.Node], set[str]] = {
    yaml.ScalarNode: {str(tag) for tag in yaml.SafeLoader.yaml_constructors} | {"tag:yaml.org,2002:merge"},
    yaml.SequenceNode: {"tag:yaml.org,2002:seq"},
    yaml.MappingNode: {"tag:yaml.org,2002:map"},
}


def _plain(node: yaml.Node, path: _Path, document: _Document) -> Any:
    """The node as dicts, lists and scalars; notes every mark, refuses a key that stands twice and tags that make
    anything else."""
    document.places[path] = _place(document.source, node)
    if node.tag not in _SAFE_TAGS[type(node)]:
        raise ConfigError(
            document.places[path],
            f"a tag that {document.kind} files may not have",
            got=node.tag.replace("tag:yaml.org,2002:", "!!"),
            wanted="plain texts, numbers, lists and mappings",
            next_step="remove the tag; put quotes around a text that starts with '!'",
        )
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), document) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node)
    values: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else str(key_node.value)
        place = _place(document.source, key_node)
        if key in values:
            first = document.keys[(*path, key)]
            raise ConfigError(
                place,
                f"key {key!r} stands twice",
                got=f"first in line {first.line}, again in line {place.line}",
                wanted="each key once",
                next_step="remove one of the two lines",
            )
        document.keys[(*path, key)] = place
        values[key] = _plain(value_node, (*path, key), document)
    return values


def _scalar(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def _place(source: str, node: yaml.Node) -> Place:
    return Place(source, node.start_mark.line + 1, node.start_mark.column + 1)


# ---- mistakes to sentences -----------------------------------------------------------------------------------------

_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}


def _mistakes(error: ValidationError, document: _Document) -> list[Any]:
    """In the order of the file, missing keys last, without those that a misspelled key was meant to be."""

    def position(found: Any) -> tuple[bool, int, int]:
        place = document.place(found["loc"], of_key=found["type"] == "extra_forbidden")
        return found["type"] == "missing", place.line or 0, place.column or 0

    mistakes = sorted(error.errors(), key=position)
    unknown = [found["loc"] for found in mistakes if found["type"] == "extra_forbidden"]
    meant = {(*path[:-1], _nearest(str(path[-1]), _fields_at(document.model, path[:-1]))) for path in unknown}
    return [found for found in mistakes if found["type"] != "missing" or found["loc"] not in meant]


def _told(error: ValidationError, document: _Document) -> ConfigError:
    """The first mistake."""
    first, *rest = _mistakes(error, document)
    others = len(rest)
    path, kind, context = first["loc"], first["type"], first.get("ctx", {})
    name = ".".join(map(str, path))
    model, fields = _model_at(document.model, path[:-1]), _fields_at(document.model, path[:-1])
    if kind == "extra_forbidden":
        return ConfigError(
            document.place(path, of_key=True),
            f"unknown key {str(path[-1])!r}" + (f" in {'.'.join(map(str, path[:-1]))!r}" if path[:-1] else ""),
            got=f"{path[-1]}: {described(first['input'])}",
            wanted="one of " + ", ".join(fields),
            nearest=_nearest(str(path[-1]), fields),
            others=others,
        )
    if kind == "missing":
        return ConfigError(
            document.place(path),
            f"key {name!r} is missing",
            got="only " + ", ".join(map(str, first["input"])) if first["input"] else "nothing",
            wanted=f"{path[-1]}: " + (_meaning(model, str(path[-1]))),
            next_step="`launcher schema` prints every key with its meaning" if document.model is Job else None,
            others=others,
        )
    expected = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
    wanted = {
        "literal_error": "one of " + ", ".join(expected),
        "value_error": str(context.get("error", "")).partition("; wanted ")[2] or str(context.get("error", "")),
        "string_pattern_mismatch": "letters, digits, '.', '_' and '-', starting with a letter or digit, at most 64",
    }.get(kind, _WANTED.get(kind) or first["msg"].replace("Input should be", "").strip())
    of_field = path
    while of_field and isinstance(of_field[-1], int):  # an item means what its list means
        of_field = of_field[:-1]
    return ConfigError(
        document.place(path),
        f"{name!r} cannot be that",
        got=described(document.value(path)),
        wanted=wanted,
        nearest=_nearest(str(first["input"]), expected) if kind == "literal_error" else None,
        next_step=_meaning(_model_at(document.model, of_field[:-1]), str(of_field[-1])) if of_field else None,
        others=others,
    )


def _model_at(root: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    model = root
    for part in path:
        if isinstance(part, int):  # the model of a list's items was found with the list
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        found = next((kind for kind in (annotation, *get_args(annotation)) if _is_model(kind)), None)
        if found is None:
            return None
        model = found
    return model


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _fields_at(root: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    model = _model_at(root, path)
    return list(model.model_fields) if model else []


def _meaning(model: type[BaseModel] | None, name: str) -> str:
    found = model.model_fields.get(name) if model else None
    if found is None:
        return "see `launcher schema`"
    if found.description is None and isinstance(found.annotation, type):
        return " ".join((found.annotation.__doc__ or "").split())
    return found.description or "see `launcher schema`"


def _nearest(word: str, choices: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.5)), None)


# ---- what the file points to ---------------------------------------------------------------------------------------


def _check_files(job: Job, document: _Document) -> None:
    if is_file(job.entrypoint):
        _check_script(job.entrypoint, document.place(("entrypoint",)))
    else:
        _check_module(job.entrypoint, document.place(("entrypoint",)))
    topology = job.collectives.topology
    if topology and not Path(topology).is_file():
        place = document.place(("collectives", "topology"))
        raise _missing(place, f"no topology file {topology!r}", Path(topology), "*.json")


def _check_travels(job: Job, document: _Document) -> None:
    """See that the job's files lie in the working directory, which goes to every node of a cluster. An absolute path
    elsewhere is one that every node has."""
    named: dict[_Path, str | None] = {
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


def _check_script(entrypoint: str, place: Place) -> None:
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
        raise _missing(place, f"no script {entrypoint!r}", Path(entrypoint), "*.py")


def _check_module(entrypoint: str, place: Place) -> None:
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
            nearest=_nearest(function, sorted(names)),
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


def _check_runs_dir(job: Job, document: _Document) -> None:
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


def _check_tensorboard(job: Job, document: _Document) -> None:
    if job.tensorboard and _find("tensorboard", None) is None:
        raise ConfigError(
            document.place(("tensorboard",)),
            "the package tensorboard is not installed here",
            got="tensorboard: true",
            wanted="tensorboard: false, or the package",
            next_step="pip install 'narrowgauge[tensorboard]'",
        )


def _missing(place: Place, what: str, path: Path, pattern: str) -> ConfigError:
    """The error of a file that isn't there, with what its folder has instead."""
    folder = path.parent
    names = sorted(found.name for found in folder.glob(pattern)) if folder.is_dir() else []
    nearest = _nearest(path.name, names)
    examples = f", such as {', '.join(names[:6])}" if names else ""
    return ConfigError(
        place,
        what,
        got=str(path),
        wanted=f"a file in {folder.resolve()}{examples}" if folder.is_dir() else f"a folder {folder.resolve()}",
        nearest=str(folder / nearest) if nearest else None,
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


def _fitted(job: Job, document: _Document, machine: Machine) -> Job:
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
