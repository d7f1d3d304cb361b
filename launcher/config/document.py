"""The values of a file and the position of each: plain values, independent of YAML.

pydantic reports an error by the path of the value, such as ("workers", "count"), and knows nothing of lines. So the
positions are kept beside the values, in two maps with the same paths as keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from launcher.errors import SourcePosition

ValuePath = tuple[str | int, ...]


@dataclass
class Document:
    """Plain values of a file with the position of each.

    Attributes:
        source: path of the file, or what stands in for it in messages, such as "the command line".
        model: what the values should validate as; it also decides which keys a message can suggest.
        keys: position of the key of each value in a mapping; items of a list have none.
        places: position of each value. () is the whole file.
    """

    source: str
    model: type[BaseModel]
    values: Any = None
    keys: dict[ValuePath, SourcePosition] = field(default_factory=dict)
    places: dict[ValuePath, SourcePosition] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of file, as messages name it: "job", "lab" or "inventory"."""
        return {"Job": "job", "LabFile": "lab"}.get(self.model.__name__, "inventory")

    def place(self, path: Sequence[str | int], of_key: bool = False) -> SourcePosition:
        """The position of the value, or of its key, at `path`.

        A missing key has no position, and neither has a value that a validator expanded from a short form
        (`workers: 4`). Then the position is that of the innermost value around it that is in the file.
        """
        for length in range(len(path), 0, -1):
            found = (self.keys if of_key else self.places).get(tuple(path[:length]))
            if found:
                return found
        return self.places.get((), SourcePosition(self.source))

    def value(self, path: Sequence[str | int]) -> Any:
        """The value at `path`, or the innermost one around it that is in the file."""
        value = self.values
        for part in path:
            known = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
            if part not in known:
                break
            value = value[part]
        return value

    def set(self, path: tuple[str, ...], value: Any, place: SourcePosition) -> None:
        """Set a value, and the mappings that lead to it, as if the file had them at `place`."""
        node = self.values
        for depth, part in enumerate(path[:-1], start=1):
            if not isinstance(node.get(part), dict):
                # `workers: 4` with `--set workers.hosts=2` keeps the 4 as workers.count; any other scalar is replaced.
                short = {"workers": "count"}.get(path[0]) if depth == 1 else None
                keeps = short is not None and part in node
                node[part] = {short: node[part]} if keeps else {}
                if not keeps:  # a mapping that the file has not is where the override is
                    self.keys[path[:depth]] = self.places[path[:depth]] = place
            node = node[part]
        node[path[-1]] = value
        for stale in [*self.places]:  # what the old value had inside is no longer there
            if stale[: len(path)] == path:
                self.places.pop(stale), self.keys.pop(stale, None)
        self.keys[path] = self.places[path] = place
