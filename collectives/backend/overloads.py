"""c10d's overloads: each method of a process group takes an options object, or that object's fields one by one.

    reduce([tensor], ReduceOptions)                 what torch.distributed calls
    reduce(tensor, root, op, timeout)               what C++ bindings offer beside it, by position or by name

A method of ours is written once, for tensors and an options object, and `overloaded` gives it the other forms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, SupportsIndex, TypeVar

from collectives.backend.c10d import dist
from collectives.errors import UsageError

Result = TypeVar("Result")

_FIELDS = {"root": "rootRank", "op": "reduceOp", "timeout": "timeout"}
_TYPES: dict[str, Any] = {"root": SupportsIndex, "op": (dist.ReduceOp, dist.ReduceOp.RedOpType), "timeout": timedelta}


def overloaded(
    kind: Any, tensors: Sequence[str], fields: Sequence[str] = ()
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Give a method ``(self, *tensors, opts)`` the overloads of c10d.

    Args:
        kind: c10d's class of options.
        tensors: c10d's names of the arguments before the options; "tensors/tensor" where overloads differ in it.
        fields: "root", "op" and "timeout", in the order in which the overload without options takes them.
    """
    names = {name: place for place, either in enumerate(tensors) for name in either.split("/")}
    count = len(tensors)

    def give(method: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(method)
        def call(self: Any, *given: Any, **named: Any) -> Result:
            if not named and len(given) == count + 1 and isinstance(given[count], kind):
                return method(self, *given)
            places = {**dict(enumerate(given[:count])), **_placed(method.__name__, names, named, len(given[:count]))}
            missing = [either for place, either in enumerate(tensors) if place not in places]
            if missing:
                raise UsageError(f"{method.__name__} lacks the argument {missing[0].replace('/', ' or ')}")
            opts = _options(method.__name__, kind, fields, given[count:], named)
            return method(self, *(places[place] for place in range(count)), opts)

        return call

    return give


def _placed(method: str, names: dict[str, int], named: dict[str, Any], taken: int) -> dict[int, Any]:
    """Take the tensors out of the named arguments: by their place, their values."""
    places: dict[int, Any] = {}
    for name in names.keys() & named.keys():
        if names[name] < taken or names[name] in places:
            raise UsageError(f"{method} got the argument {name!r} twice")
        places[names[name]] = named.pop(name)
    return places


def _options(method: str, kind: Any, fields: Sequence[str], given: Sequence[Any], named: dict[str, Any]) -> Any:
    """The options object that was passed, or one with the fields that were passed."""
    opts = named.pop("opts", None) if not given else given[0]
    if isinstance(opts, kind):
        if given[1:] or named:
            raise UsageError(f"{method} got {kind.__name__} and more arguments; pass one or the other")
        return opts
    if opts is not None and not given:
        raise UsageError(f"{method} got opts of type {type(opts).__name__}; wanted {kind.__name__}")
    made = kind()
    if given == (None,) and not named:
        return made
    if len(given) > len(fields):
        wanted = f"{kind.__name__}, or {', '.join(fields)}" if fields else kind.__name__
        raise UsageError(f"{method} got {_described(given)} after its tensors; wanted {wanted}")
    values = dict(zip(fields, given, strict=False))
    for name, value in named.items():
        if name not in fields:
            raise UsageError(f"{method} got the argument {name!r}; wanted {kind.__name__}, or {', '.join(fields)}")
        if name in values:
            raise UsageError(f"{method} got the argument {name!r} twice")
        values[name] = value
    for name, value in values.items():
        if value is None:
            continue
        if not isinstance(value, _TYPES[name]):
            wanted = f"{kind.__name__}, or {', '.join(fields)}"
            raise UsageError(f"{method} got {_described([value])} as {name}; wanted {wanted}")
        setattr(made, _FIELDS[name], value)
    return made


def _described(values: Sequence[Any]) -> str:
    return ", ".join(f"a {type(value).__name__}" for value in values)
