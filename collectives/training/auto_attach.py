"""Attaches the DDP models of an unmodified script; the launcher calls it if the job asks for a codec."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from collectives.backend.process_group import NarrowgaugeGroup
from collectives.backend.untraced import untraced
from collectives.training.ddp import attach


def attach_new_models() -> None:
    """Attach each DDP model over one of our groups, with the options' codec, at its first forward pass from now on.

    Not in its constructor: the script may register a comm hook or attach the model itself after that, and such models
    are left alone.
    """
    make = DistributedDataParallel.__init__

    @functools.wraps(make)
    def make_attached(self: DistributedDataParallel, *args: Any, **named: Any) -> None:
        make(self, *args, **named)

        @untraced
        def first_call(model: nn.Module, inputs: Any) -> None:
            waiting.remove()
            if not self._comm_hooks and isinstance(self.process_group, NarrowgaugeGroup):
                attach(self)

        waiting = self.register_forward_pre_hook(first_call)

    DistributedDataParallel.__init__ = make_attached  # type: ignore[method-assign]
