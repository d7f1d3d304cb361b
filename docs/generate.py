"""A hook of MkDocs: writes the parts of the reference that the sources already state.

A page asks for one by a comment on a line of its own, `<!-- generate: job-file -->`. Nothing is written to disk.
A variable that the sources use and the page on environment variables lacks ends the build.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]

MARKER = re.compile(r"^<!-- generate: ([\w-]+) -->$", re.MULTILINE)
_KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "array": "list",
    "object": "mapping",
    "null": "null",
}


def on_config(config: Any) -> Any:
    """Called by MkDocs once. The path is set here, because MkDocs removes its first entry after importing a hook."""
    sys.path.insert(0, str(REPOSITORY))
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for every page."""
    return MARKER.sub(lambda marker: PARTS[marker[1]](), markdown)


# Job file and lab file


def job_file() -> str:
    """Every key of a job file, a table for each section."""
    from launcher.config.job import Job

    return "\n".join(_sections(Job.model_json_schema(), "Top level"))


def lab_file() -> str:
    """Every key of a lab file, a table for each section."""
    from launcher.config.lab_file import LabFile

    return "\n".join(_sections(LabFile.model_json_schema(), "Top level"))


def _sections(schema: Mapping[str, Any], title: str) -> Iterator[str]:
    yield from _section(title, "", schema)
    for name, field in schema["properties"].items():
        reference = field.get("$ref") or field.get("items", {}).get("$ref")
        if reference:
            yield from _section(f"`{name}`", name, schema["$defs"][reference.rpartition("/")[2]])


def _section(title: str, prefix: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n## {title}\n\n{_text(schema.get('description', ''))}\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        key = f"{prefix}.{name}" if prefix else name
        default = "required" if name in required else _value(field["default"]) if "default" in field else ""
        meaning = _text(field.get("description", ""))
        reference = field.get("$ref") or field.get("items", {}).get("$ref")
        if reference:
            default = "required" if name in required else ""
            meaning = f"{meaning} See [`{name}`](#{name}).".strip()
        yield _row(f"`{key}`", _kind(field), default, meaning)


def _kind(field: Mapping[str, Any]) -> str:
    """What a value may be, with its constraints."""
    if "anyOf" in field:
        kinds = [_kind(each) for each in field["anyOf"]]
        return (", or " if any("," in kind for kind in kinds) else " or ").join(kinds)
    if "$ref" in field:
        return "section"
    if "enum" in field:
        return ", ".join(_value(each) for each in field["enum"])
    if "const" in field:
        return _value(field["const"])
    kind = _KINDS[field["type"]]
    if field["type"] == "array":
        items = field["items"]
        kind = "list of sections" if "$ref" in items else f"list of: {_kind(items)}"
    elif field["type"] == "object" and isinstance(field.get("additionalProperties"), dict):
        kind = f"mapping of names to: {_kind(field['additionalProperties'])}"
    limits = [
        *(f"at least {field[name]:g}" for name in ("minimum",) if name in field),
        *(f"more than {field[name]:g}" for name in ("exclusiveMinimum",) if name in field),
        *(f"at most {field[name]:g}" for name in ("maximum",) if name in field),
        *(f"at least {field[name]} entries" for name in ("minItems",) if field.get(name, 0) > 1),
        *("not empty" for name in ("minItems", "minLength") if field.get(name) == 1),
        *(f"at most {field[name]} entries" for name in ("maxItems",) if name in field),
        *(f"matches `{field[name]}`" for name in ("pattern",) if name in field),
    ]
    return ", ".join([kind, *limits])


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    return f"`{value}`"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text(description: str) -> str:
    return " ".join(description.split())


# Command line


def command_line() -> str:
    """Every command of `launcher`, with its arguments and options."""
    import typer

    from launcher.cli import app

    return "\n".join(_command("launcher", typer.main.get_command(app), 2))


def _command(path: str, command: Any, level: int) -> Iterator[str]:
    parameters = [each for each in command.params if not getattr(each, "hidden", False) and each.name != "help"]
    if level > 2:
        usage = [each.metavar or each.name.upper() for each in parameters if each.param_type_name == "argument"]
        more = ["..."] if command.context_settings.get("allow_extra_args") else []
        inner = ["COMMAND"] if hasattr(command, "commands") else []
        options = ["[OPTIONS]"] if any(each.param_type_name == "option" for each in parameters) else []
        yield f"\n{'#' * min(level, 4)} {path}\n"
        yield "```text\n" + " ".join([path, *options, *usage, *more, *inner]) + "\n```\n"
    yield inspect.cleandoc(command.help or "") + "\n"
    if parameters:
        yield "| argument or option | default | meaning |\n|---|---|---|"
    for each in parameters:
        yield _row(*_parameter(each))
    for name, inner_command in getattr(command, "commands", {}).items():
        yield from _command(f"{path} {name}", inner_command, level + 1)


def _parameter(parameter: Any) -> tuple[str, str, str]:
    help_text = " ".join((getattr(parameter, "help", None) or "").split())
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`", "required" if parameter.required else "", help_text
    names = ", ".join(parameter.opts + parameter.secondary_opts)
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
    unset = parameter.is_flag or parameter.default in (None, [], ())
    default = "" if unset or not isinstance(parameter.default, str | int | float | Path) else f"`{parameter.default}`"
    if parameter.envvar:
        help_text += f" Environment: `{parameter.envvar}`."
    return f"`{names}{value}`", default, help_text


# Metrics, run folder, environment, errors


def metrics() -> str:
    """The metrics of a run."""
    from launcher.monitor.metrics import METRICS

    rows = ["| name | kind | tags | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        tags = "run, rank, host" if metric.of_rank else "run"
        rows.append(f"| `{metric.name}` | {metric.kind} | {tags} | {metric.meaning} |")
    return "\n".join(rows)


def run_folder() -> str:
    """What a run leaves, as the module that names every path says."""
    documented = inspect.getdoc(importlib.import_module("launcher.record.run_dir")) or ""
    return f"```text\n{documented[documented.index('runs/') :].rstrip()}\n```"


def options() -> str:
    """The variables behind `collectives.Options`."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for variable, meaning, default in _options():
        rows.append(_row(f"`{variable}`", _value(default), meaning))
    return "\n".join(rows)


@cache
def _options() -> list[tuple[str, str, Any]]:
    """Of each option: its variable, its meaning, its default."""
    from collectives.options import Options

    attributes = (inspect.getdoc(Options) or "").partition("Attributes:\n")[2]
    found = []
    for name, field in Options.__dataclass_fields__.items():
        match = re.search(rf"^    {name}: (.*?)(?=^    \w+: |\Z)", attributes, re.DOTALL | re.MULTILINE)
        variable = f"NARROWGAUGE_{name.upper()}"
        if match is None or variable not in match[1]:
            raise SystemExit(f"collectives/options.py: {name} lacks a description that names {variable}")
        meaning, _, values = _text(match[1]).partition(f" Env {variable}")
        found.append((variable, f"{meaning[0].upper()}{meaning[1:]}{values.removesuffix('.')}", field.default))
    return found


def check_environment() -> str:
    """Nothing to show: that the sources and the page name the same variables."""
    page = (REPOSITORY / "docs" / "reference" / "environment.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"NARROWGAUGE_[A-Z_]*[A-Z]", page)) | {variable for variable, _, _ in _options()}
    used = variables_in_sources()
    if used != documented:
        raise SystemExit(
            f"docs/reference/environment.md: not documented: {sorted(used - documented)}; "
            f"not in the sources: {sorted(documented - used)}"
        )
    return ""


def variables_in_sources() -> set[str]:
    """Every NARROWGAUGE_* variable that the packages name."""
    files = [path for package in ("collectives", "launcher") for path in (REPOSITORY / package).rglob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    return set(re.findall(r"\bNARROWGAUGE_[A-Z_]*[A-Z]\b", text))


def collectives_errors() -> str:
    """The tree of errors of `collectives`."""
    return _errors("collectives.errors", "NarrowgaugeError")


def launcher_errors() -> str:
    """The tree of errors of `launcher`."""
    return _errors("launcher.errors", "LauncherError")


def _errors(module_name: str, root: str) -> str:
    module = importlib.import_module(module_name)
    rows = ["| error | is a | meaning |", "|---|---|---|"]
    waiting = [getattr(module, root)]
    while waiting:
        error = waiting.pop(0)
        waiting = [*error.__subclasses__(), *waiting]
        bases = ", ".join(f"`{base.__name__}`" for base in error.__bases__)
        first_paragraph = (inspect.getdoc(error) or "").partition("\n\n")[0]
        rows.append(_row(f"`{error.__name__}`", bases, _text(first_paragraph)))
    return "\n".join(rows)


PARTS: dict[str, Callable[[], str]] = {
    "job-file": job_file,
    "lab-file": lab_file,
    "command-line": command_line,
    "metrics": metrics,
    "run-folder": run_folder,
    "options": options,
    "check-environment": check_environment,
    "collectives-errors": collectives_errors,
    "launcher-errors": launcher_errors,
}
