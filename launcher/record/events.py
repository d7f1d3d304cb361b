"""What happens to the workers of a run, as plain values. Workers and their agents send events, the supervisor acts on
them, events.jsonl keeps them, and every view of a run is made from them.

`at` is wall-clock time in seconds since 1970, by the clock of the node where it happened.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict, dataclass, field
from functools import cache
from types import UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Event:
    """Something that happened to one rank."""

    rank: int
    at: float


@dataclass(frozen=True)
class Started(Event):
    """The worker's process is running. `interface` is the network interface of its traffic, if known."""

    pid: int
    log: str
    interface: str | None = None


@dataclass(frozen=True)
class Reported(Event):
    """The script reported progress. `of` is the last step that the script will do, if it says so.

    Of this rank since its last report: `tokens`, `wait_s` (seconds spent waiting for communication), `num_bytes` (of
    all collectives' messages), `waits` (seconds of poll time attributed to each other rank, by that rank's name,
    as "rank 2 (box-7)"), and for attached models `samples` and `compute_s` (seconds of forward and backward).
    """

    step: int
    of: int | None = None
    loss: float | None = None
    tokens: int = 0
    wait_s: float = 0.0
    num_bytes: int = 0
    samples: float = 0.0
    compute_s: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Noted(Event):
    """The script added facts to the summary, such as heldout_loss."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Planned(Event):
    """The plan that the collectives follow, as `Plan.summary()` gives it."""

    plan: dict[str, Any]


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint was written: steps done, its folder, bytes of its files, seconds for which training paused."""

    step: int
    folder: str
    num_bytes: int
    seconds: float


@dataclass(frozen=True)
class Restored(Event):
    """The script resumes from a checkpoint of this many steps."""

    step: int
    folder: str


@dataclass(frozen=True)
class Balanced(Event):
    """Shares of the global batch changed, from `old` to `new` samples of each rank. `speeds` are samples per second of
    each rank; `gain` is the reduction of the slowest rank's compute time, as a fraction."""

    old: list[int]
    new: list[int]
    speeds: list[float]
    gain: float


@dataclass(frozen=True)
class Retried(Event):
    """The workers are started again. `attempt` is the number of the attempt that begins, from 1; `why` and `rank` say
    what ended the one before."""

    attempt: int
    why: str


@dataclass(frozen=True)
class Raised(Event):
    """The script ended with an exception. `culprit` is the rank that the exception blames, if any."""

    kind: str
    message: str
    culprit: int | None = None


@dataclass(frozen=True)
class Exited(Event):
    """The worker's process ended: its exit status, or minus the number of the signal that killed it."""

    code: int


@dataclass(frozen=True)
class Lost(Event):
    """The worker's node or its agent is gone, and the worker with it."""

    reason: str


@dataclass(frozen=True)
class Logged(Event):
    """Text for the worker's log: its output on a node that does not share the run's folder, or a remark of the
    agent."""

    text: str


FROM_SCRIPT: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (Reported, Noted, Planned, Saved, Restored, Balanced, Raised)
}


def to_json(event: Event) -> dict[str, Any]:
    """The event as one JSON object; `event` names its kind."""
    return {"event": type(event).__name__, **asdict(event)}


def from_script(message: Any) -> Event:
    """The event that a script has sent. It may not send those that only the launcher can know, such as its own exit.

    Raises:
        ValueError: it is not the JSON form of an event that scripts may send.
    """
    kind = FROM_SCRIPT.get(str(message.get("event"))) if isinstance(message, dict) else None
    if kind is None:
        raise ValueError(f"not an event of a script: {message!r}")
    return _made(kind, message)


def from_json(message: Any) -> Event:
    """The event that `to_json` wrote.

    Raises:
        ValueError: it is not the JSON form of an event.
    """
    kinds = {kind.__name__: kind for kind in Event.__subclasses__()}
    kind = kinds.get(str(message.get("event"))) if isinstance(message, dict) else None
    if kind is None:
        raise ValueError(f"not an event: {message!r}")
    return _made(kind, message)


def _made(kind: type[Event], message: dict[str, Any]) -> Event:
    """An event of this kind.

    Raises:
        ValueError: unknown or missing fields, or values of the wrong type.
    """
    fields = {name: value for name, value in message.items() if name != "event"}
    hints = _hints(cast(Hashable, kind))  # mypy takes a class's hash for that of its instances
    wrong = [f"{name} is {value!r}" for name, value in fields.items() if not _fits(value, hints.get(name))]
    try:
        event = kind(**fields)
    except TypeError as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error
    if wrong:
        raise ValueError(f"not a {kind.__name__}: {', '.join(wrong)}")
    return event


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Types of the fields. Evaluating them takes most of a millisecond, and every report of every rank needs them."""
    return get_type_hints(kind)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value from JSON has a field's type; an int fits a float. A bool does not fit an int, though Python says
    so, hence `type` and not `isinstance`."""
    kinds = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
    return type(value) in kinds or (type(value) is int and float in kinds)
