"""Checkpoints of a training script: `from launcher import checkpoint`, then `checkpoint.Checkpoints(...)`.

`Checkpoints` is imported at its first use: it imports torch, which takes a second, and the command line needs only
`files` and `resume`.
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
