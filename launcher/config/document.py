"""What a file says, and where in it each value stands: plain values, without a word of YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from launcher.errors import SourcePosition

ValuePath = tuple[str | int, ...]


@dataclass
class Document:
    """Plain values of a file, and where each of them stands."""

    source: str
    model: type[BaseModel]
    values: Any = None
    keys: dict[ValuePath, SourcePosition] = field(default_factory=dict)
    places: dict[ValuePath, SourcePosition] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Of what it is a file: "job", "lab" or "inventory"."""
        return {"Job": "job", "LabFile": "lab"}.get(self.model.__name__, "inventory")

    def place(self, path: Sequence[str | int], of_key: bool = False) -> SourcePosition:
        """The mark of the value (or key) at the longest part of `path` that is in the file."""
        for length in range(len(path), 0, -1):
            found = (self.keys if of_key else self.places).get(tuple(path[:length]))
            if found:
                return found
        return self.places.get((), SourcePosition(self.source))

    def value(self, path: Sequence[str | int]) -> Any:
        """The value at the longest part of `path` that is in the file."""
        value = self.values
        for part in path:
            known = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
            if part not in known:
                break
            value = value[part]
        return value

    def set(self, path: tuple[str, ...], value: Any, place: SourcePosition) -> None:
        """Put a value there, and the keys that lead to it, as if the file had them at that place."""
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
