"""From a job, lab or inventory file to a `Job`, `LabFile` or `Inventory`, or one clear error with its line.

Reading goes text -> YAML nodes -> `Document` (plain values, and the position of each) -> the model. YAML is composed
into nodes instead of loaded, since only nodes carry line and column, and only there a duplicate key is still visible:
`yaml.safe_load` keeps the last one silently. This is the only file that reads YAML.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from collectives.errors import PlanError
from collectives.topology import Topology
from launcher.config.document import Document, ValuePath
from launcher.config.job import Job, describe_value
from launcher.config.lab_file import LabFile, contradictions
from launcher.config.preflight import (
    LocalMachine,
    check_files,
    check_runs_dir,
    check_tensorboard,
    check_uploadable,
    fit_workers,
    missing_file,
)
from launcher.config.validation_errors import config_error
from launcher.errors import ConfigError, Contradiction, SourcePosition
from launcher.inventory import inventory
from launcher.inventory.inventory import Inventory


def load(
    path: Path, overrides: Sequence[str] = (), machine: LocalMachine | None = None, *, elsewhere: bool = False
) -> Job:
    """Read a job file, apply `key.key=value` overrides, and check it against this machine.

    Args:
        path: YAML file.
        overrides: as given to `--set`; the value is YAML.
        machine: what the workers must fit on if the cluster is local; None measures this machine.
        elsewhere: the job is only planned, for other machines than this one, so nothing about this one is checked.

    Raises:
        ConfigError: the file cannot be read or is not YAML; a key or value is not one of `Job`; the script, function or
            topology file that it names does not exist; the folder for runs cannot be made; a package that it needs is
            not installed; or it asks for more than the machine has. It is about the first error in the file.
    """
    document = _read(path)
    for override in overrides:
        _apply(override, document)
    try:
        job = Job.model_validate(document.values)
    except ValidationError as error:
        raise config_error(error, document) from None
    check_files(job, document)
    if elsewhere:
        pass  # no files are uploaded, and nothing runs here
    elif job.cluster.address is not None:
        check_uploadable(job, document)
    else:
        job = fit_workers(job, document, machine or LocalMachine.here())
    check_runs_dir(job, document)
    check_tensorboard(job, document)
    return job


def load_resolved(path: Path) -> Job:
    """Read the job from a run's folder. It was checked when the run began, and its files may be gone since.

    Raises:
        ConfigError: it cannot be read, or is not a job of this version.
    """
    document = _read(path)
    try:
        return Job.model_validate(document.values)
    except ValidationError as error:
        raise config_error(error, document) from None


def load_lab(path: Path) -> LabFile:
    """Read a lab file.

    Raises:
        ConfigError: as of `load`; duplicate names; sites of hosts that are not in the file.
    """
    document = _read(path, LabFile)
    try:
        lab = LabFile.model_validate(document.values)
    except ValidationError as error:
        raise config_error(error, document) from None
    _refuse(list(contradictions(lab)), document)
    return lab


def load_inventory(path: Path) -> Inventory:
    """Read an inventory, which is JSON.

    Raises:
        ConfigError: as of `load`; duplicate nodes; links of hosts that are no nodes; unknown accelerators.
    """
    document = _read(path, Inventory)
    try:  # read again as JSON: YAML 1.1 reads 1e9 as text
        document.values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        place = SourcePosition(str(path), error.lineno, error.colno)
        raise ConfigError(place, "not JSON", got=error.msg, wanted="what `launcher inventory --save` writes") from None
    try:
        found = Inventory.model_validate(document.values)
    except ValidationError as error:
        raise config_error(error, document) from None
    _refuse(list(inventory.contradictions(found)), document)
    return found


def with_links(found: Inventory, path: Path) -> Inventory:
    """The inventory with the links of a topology file.

    Raises:
        ConfigError: the file cannot be read, is no topology, or is about other hosts.
    """
    try:
        linked = found.model_copy(update={"topology": Topology.load(path)})
    except (PlanError, OSError) as error:
        raise ConfigError(
            SourcePosition(str(path)), "not a topology", got=str(error), wanted="what `launcher probe --save` writes"
        ) from None
    _refuse(list(inventory.contradictions(linked)), Document(str(path), Inventory))
    return linked


def with_overrides(job: Job, overrides: Sequence[str]) -> Job:
    """A job that is in no file, with `key.key=value` overrides.

    Raises:
        ConfigError: as of `load`, for an override.
    """
    document = Document("the command line", Job, values=job.model_dump())
    for override in overrides:
        _apply(override, document)
    try:
        return Job.model_validate(document.values)
    except ValidationError as error:
        raise config_error(error, document) from None


def _refuse(found: list[Contradiction], document: Document) -> None:
    """Raise the first contradiction; the others are only counted."""
    if found:
        first, others = found[0], len(found) - 1
        place = document.place(first.path)
        raise ConfigError(place, first.what, got=first.got, wanted=first.wanted, nearest=first.nearest, others=others)


def to_yaml(job: Job) -> str:
    """The job as a file that `load` reads back to the same job."""
    return yaml.safe_dump(job.model_dump(), sort_keys=False)


def _apply(override: str, document: Document) -> None:
    """Set one value as `key.key=value` says."""
    place = SourcePosition(f"--set {override}")
    name, equals, text = override.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(place, "not an override", got=override, wanted="key=value or key.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(place, "the value is not YAML", got=text, wanted="a YAML value, such as 4 or gloo") from None
    document.set(path, value, place)


def _read(path: Path, model: type[BaseModel] = Job) -> Document:
    document = Document(str(path), model)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise missing_file(SourcePosition(str(path)), "no such file", path, "*.y*ml") from None
    except UnicodeDecodeError as error:
        raise _not_text(path, str(error)) from None
    except OSError as error:
        raise ConfigError(
            SourcePosition(str(path)), "cannot be read", got=str(error), wanted="a YAML text file"
        ) from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document.values = {} if root is None else _plain(root, (), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = SourcePosition(str(path), mark.line + 1, mark.column + 1) if mark else SourcePosition(str(path))
        line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        # YAML forbids tabs in indentation, and its own message about one is hard to understand.
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
            got=describe_value(document.values),
            wanted="keys: " + ", ".join(model.model_fields),
        )
    return document


def _not_text(path: Path, got: str) -> ConfigError:
    return ConfigError(
        SourcePosition(str(path)),
        "not a text file in UTF-8",
        got=got,
        wanted="a YAML text file",
        next_step="save it as UTF-8",
    )


_SAFE_TAGS: dict[type[yaml.Node], set[str]] = {
    yaml.ScalarNode: {str(tag) for tag in yaml.SafeLoader.yaml_constructors} | {"tag:yaml.org,2002:merge"},
    yaml.SequenceNode: {"tag:yaml.org,2002:seq"},
    yaml.MappingNode: {"tag:yaml.org,2002:map"},
}


def _plain(node: yaml.Node, path: ValuePath, document: Document) -> Any:
    """The node as dicts, lists and scalars; enters every position into the document.

    Refuses duplicate keys, and tags that construct other objects: a job file may come from somebody else.
    """
    document.places[path] = _place(document.source, node)
    if node.tag not in _SAFE_TAGS[type(node)]:
        raise ConfigError(
            document.places[path],
            f"a tag that is not allowed in {document.kind} files",
            got=node.tag.replace("tag:yaml.org,2002:", "!!"),
            wanted="plain text, numbers, lists and mappings",
            next_step="remove the tag; quote text that starts with '!'",
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
                f"duplicate key {key!r}",
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


def _place(source: str, node: yaml.Node) -> SourcePosition:
    return SourcePosition(source, node.start_mark.line + 1, node.start_mark.column + 1)
