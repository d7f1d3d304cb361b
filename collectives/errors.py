"""The exceptions of this package, as one tree.

    NarrowgaugeError
    ├── UsageError (ValueError)              invalid arguments or settings
    ├── RendezvousError (RuntimeError)       the group could not be formed
    ├── PlanError (ValueError)               an invalid topology, forest or plan; shows the fault
    └── CollectiveError (RuntimeError)       an op failed; the group is broken from then on
        ├── PeerLost                         a rank's process or host is gone
        ├── OpMismatch                       ranks called different ops at the same position
        ├── OpTimeout (TimeoutError)         no progress for timeout_s
        ├── GroupClosed                      the group was destroyed, here or by a peer
        └── ProtocolError                    bytes that no correct peer would send

A message says who (rank, host), where (op, tree, slice), what was got, what was wanted, and what to look at next.
"""

from __future__ import annotations


class NarrowgaugeError(Exception):
    """Base class of all exceptions of this package."""


class UsageError(NarrowgaugeError, ValueError):
    """Invalid arguments or settings."""


class PlanError(NarrowgaugeError, ValueError):
    """An invalid topology, forest or plan."""


class RendezvousError(NarrowgaugeError, RuntimeError):
    """The ranks of a group could not connect, or one could not prove the group's token."""


class CollectiveError(NarrowgaugeError, RuntimeError):
    """An op failed.

    Attributes:
        culprit: the rank that caused it; None if it is not known.
    """

    def __init__(self, message: str, culprit: int | None = None) -> None:
        super().__init__(message)
        self.culprit = culprit


class PeerLost(CollectiveError):
    """A rank's process or host is gone."""


SAME_CALLS = (
    "all ranks must call the same collectives in the same order with the same sizes, dtypes and reductions, and have "
    "the same topology file, slice_bytes and window_bytes"
)


class OpMismatch(CollectiveError):
    """Ranks called different ops where all must call the same."""


class OpTimeout(CollectiveError, TimeoutError):
    """No progress for the group's timeout."""


class GroupClosed(CollectiveError):
    """The group was closed before or while the op ran."""


class ProtocolError(CollectiveError):
    """A peer sent bytes that no correct peer sends."""


def caret(line: str, start: int, length: int) -> str:
    """For error messages: the line, cut to a screen's width around the fault, and carets under the fault."""
    first = max(0, start - 60)
    shown = line[first : start + length + 40]
    return f"    {shown}\n    {' ' * (start - first)}{'^' * max(1, length)}"
