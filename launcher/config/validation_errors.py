"""pydantic's errors as messages for the user: (ValidationError, Document) -> ConfigError for the first, with its line.

The first error is the first in the file, not the first that pydantic found: users correct a file from top to bottom.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from launcher.config.document import Document
from launcher.config.job import describe_value
from launcher.errors import ConfigError

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


def _in_file_order(error: ValidationError, document: Document) -> list[Any]:
    """Errors in the order of the file, missing keys last, since they have no line of their own.

    A misspelled required key gives two errors, an unknown key and a missing one. The second is dropped: the nearest
    key that the first suggests already says it.
    """

    def position(found: Any) -> tuple[bool, int, int]:
        place = document.place(found["loc"], of_key=found["type"] == "extra_forbidden")
        return found["type"] == "missing", place.line or 0, place.column or 0

    errors = sorted(error.errors(), key=position)
    unknown = [found["loc"] for found in errors if found["type"] == "extra_forbidden"]
    meant = {(*path[:-1], nearest(str(path[-1]), _fields_at(document.model, path[:-1]))) for path in unknown}
    return [found for found in errors if found["type"] != "missing" or found["loc"] not in meant]


def config_error(error: ValidationError, document: Document) -> ConfigError:
    """The first error of the file as a message; the others are only counted."""
    first, *rest = _in_file_order(error, document)
    make = {"extra_forbidden": _unknown_key, "missing": _missing_key}.get(first["type"], _wrong_value)
    return make(first, document, len(rest))


def _unknown_key(found: Any, document: Document, others: int) -> ConfigError:
    *parents, key = found["loc"]
    fields = _fields_at(document.model, parents)
    return ConfigError(
        document.place(found["loc"], of_key=True),
        f"unknown key {str(key)!r}" + (f" in {_dotted(parents)!r}" if parents else ""),
        got=f"{key}: {describe_value(found['input'])}",
        wanted="one of " + ", ".join(fields),
        nearest=nearest(str(key), fields),
        others=others,
    )


def _missing_key(found: Any, document: Document, others: int) -> ConfigError:
    *parents, key = found["loc"]
    return ConfigError(
        document.place(found["loc"]),
        f"key {_dotted(found['loc'])!r} is missing",
        got="only " + ", ".join(map(str, found["input"])) if found["input"] else "nothing",
        wanted=f"{key}: {_description(_model_at(document.model, parents), str(key))}",
        next_step="`launcher schema` describes every key" if document.kind == "job" else None,
        others=others,
    )


def _wrong_value(found: Any, document: Document, others: int) -> ConfigError:
    path, kind, context = found["loc"], found["type"], found.get("ctx", {})
    # pydantic says "'a', 'b' or 'c'" where the value is none of a Literal's.
    expected = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
    raised = str(context.get("error", ""))  # by a validator of ours, whose messages say what is wanted
    wanted = {
        "literal_error": "one of " + ", ".join(expected),
        "value_error": raised.partition("; wanted ")[2] or raised,
        "string_pattern_mismatch": "letters, digits, '.', '_' and '-', starting with a letter or digit, at most 64",
    }.get(kind, _WANTED.get(kind) or found["msg"].replace("Input should be", "").strip())
    field = path
    while field and isinstance(field[-1], int):  # an item of a list has its meaning from the list
        field = field[:-1]
    return ConfigError(
        document.place(path),
        f"{_dotted(path)!r} has an invalid value",
        got=describe_value(document.value(path)),
        wanted=wanted,
        nearest=nearest(str(found["input"]), expected) if kind == "literal_error" else None,
        next_step=_description(_model_at(document.model, field[:-1]), str(field[-1])) if field else None,
        others=others,
    )


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))


def _model_at(root: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    """The model of the section at `path`; None where there is none, as in `env`."""
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


def _description(model: type[BaseModel] | None, name: str) -> str:
    found = model.model_fields.get(name) if model else None
    if found is None:
        return "see `launcher schema`"
    if found.description is None and isinstance(found.annotation, type):  # a section: its docstring says it
        return " ".join((found.annotation.__doc__ or "").split())
    return found.description or "see `launcher schema`"


def nearest(word: str, choices: Sequence[str]) -> str | None:
    """The choice that `word` was probably meant to be, if one is close enough."""
    return next(iter(difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.5)), None)
