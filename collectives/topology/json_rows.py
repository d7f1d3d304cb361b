"""Builds flat dataclasses from JSON objects; errors name the place, such as ``hosts[2].ranks``."""

from __future__ import annotations

import difflib
import json
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

from collectives.errors import PlanError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a string"),
    "float": ((int, float), "a number"),
    "tuple[int, ...]": ((int,), "a list of whole numbers"),
    "tuple[str, ...]": ((str,), "a list of strings"),
}


def fields_of(kind: type, row: object, place: str) -> dict[str, Any]:
    """The object's fields by name.

    Raises:
        PlanError: not an object, an unknown field, or a required one missing.
    """
    if not isinstance(row, dict):
        raise PlanError(f"{place}: got {json.dumps(row)[:40]}; wanted an object")
    known = {field.name: field for field in fields(kind)}
    for name in row:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise PlanError(
                f"{place}: {name!r} is unknown; " + (f"did you mean {near[0]!r}?" if near else f"use {[*known]}")
            )
    for name, field in known.items():
        if field.default is MISSING and name not in row:
            raise PlanError(f"{place}: {name!r} is missing")
    return row


def read_rows(kind: type[Row], rows: object, part: str) -> tuple[Row, ...]:
    """Build a `kind` from each object of a JSON list; `part` names the list in errors.

    Raises:
        PlanError: an unknown or missing field, or one of a wrong type.
    """
    if not isinstance(rows, list):
        raise PlanError(f"{part}: got {json.dumps(rows)[:40]}; wanted a list of objects")
    built = []
    for i, row in enumerate(rows):
        values = fields_of(kind, row, f"{part}[{i}]")
        for field in fields(kind):
            types, wanted = _KINDS[str(field.type)]
            value = values.get(field.name, field.default)
            listed = str(field.type).startswith("tuple")
            items = value if isinstance(value, list) and listed else [None if listed else value]
            if not all(isinstance(item, types) and not isinstance(item, bool) for item in items):
                raise PlanError(f"{part}[{i}].{field.name}: got {json.dumps(value)[:40]}; wanted {wanted}")
            values = {**values, field.name: tuple(items) if listed else value}
        built.append(kind(**values))
    return tuple(built)
