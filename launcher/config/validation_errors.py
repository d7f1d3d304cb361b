"""Mistakes that pydantic found in a file, as sentences: (its errors, the document) -> the first one, with its place."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from launcher.config.document import Document
from launcher.config.job import described
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


def _mistakes(error: ValidationError, document: Document) -> list[Any]:
    """In the order of the file, missing keys last, without those that a misspelled key was meant to be."""

    def position(found: Any) -> tuple[bool, int, int]:
        place = document.place(found["loc"], of_key=found["type"] == "extra_forbidden")
        return found["type"] == "missing", place.line or 0, place.column or 0

    mistakes = sorted(error.errors(), key=position)
    unknown = [found["loc"] for found in mistakes if found["type"] == "extra_forbidden"]
    meant = {(*path[:-1], nearest(str(path[-1]), _fields_at(document.model, path[:-1]))) for path in unknown}
    return [found for found in mistakes if found["type"] != "missing" or found["loc"] not in meant]


def told(error: ValidationError, document: Document) -> ConfigError:
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
            nearest=nearest(str(path[-1]), fields),
            others=others,
        )
    if kind == "missing":
        return ConfigError(
            document.place(path),
            f"key {name!r} is missing",
            got="only " + ", ".join(map(str, first["input"])) if first["input"] else "nothing",
            wanted=f"{path[-1]}: " + (_meaning(model, str(path[-1]))),
            next_step="`launcher schema` prints every key with its meaning" if document.kind == "job" else None,
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
        nearest=nearest(str(first["input"]), expected) if kind == "literal_error" else None,
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


def nearest(word: str, choices: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.5)), None)
