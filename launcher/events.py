"""What happens to the workers of a run, as plain values: workers say it, the supervisor decides on it.

`at` is wall-clock time in seconds since 1970, by the clock of the node where it happened.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened to one rank."""

    rank: int
    at: float


@dataclass(frozen=True)
class Started(Event):
    """The worker's process runs."""

    pid: int
    log: str


@dataclass(frozen=True)
class Reported(Event):
    """The script told its progress. `tokens` and `wait_s` (seconds spent waiting for communication) are this rank's own
    since its last report; `of` is the last step that the script will do, if it knows."""

    step: int
    of: int | None = None
    loss: float | None = None
    tokens: int = 0
    wait_s: float = 0.0
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Noted(Event):
    """The script told facts for the summary, such as heldout_loss."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Planned(Event):
    """The plan that the collectives follow, as `Plan.summary()` gives it."""

    plan: dict[str, Any]


@dataclass(frozen=True)
class Raised(Event):
    """The script ended by an exception. `culprit` is the rank that the exception blames, if any."""

    kind: str
    message: str
    culprit: int | None = None


@dataclass(frozen=True)
class Exited(Event):
    """The worker's process ended: its exit status, or minus the number of the signal that killed it."""

    code: int


@dataclass(frozen=True)
class Lost(Event):
    """The worker's node, or the process that watched the worker there, is gone; the worker went with it."""

    reason: str


@dataclass(frozen=True)
class Logged(Event):
    """Output of a worker on a node that doesn't share the run folder."""

    text: str


FROM_SCRIPT: dict[str, type[Event]] = {kind.__name__: kind for kind in (Reported, Noted, Planned, Raised)}


def to_json(event: Event) -> dict[str, Any]:
    """The event as one JSON object; `event` names its kind."""
    return {"event": type(event).__name__, **asdict(event)}


def from_script(message: dict[str, Any]) -> Event:
    """An event out of what a script sent.

    Raises:
        ValueError: it is not the JSON form of an event that scripts may send.
    """
    kind = FROM_SCRIPT.get(str(message.pop("event", None)))
    if kind is None:
        raise ValueError(f"not an event of a script: {message}")
    try:
        return kind(**message)
    except TypeError as error:
        raise ValueError(f"not a {kind.__name__}: {message}") from error
