"""Checkpoints of a training script; see `launcher.checkpoint.checkpoints`.

`Checkpoints` is loaded when it is asked for: it brings torch, which the command line can do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.checkpoint.checkpoints import Checkpoints as Checkpoints

__all__ = ["Checkpoints"]


def __getattr__(name: str) -> Any:
    if name == "Checkpoints":
        from launcher.checkpoint.checkpoints import Checkpoints

        return Checkpoints
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
