"""Models of scripts that know nothing of us, attached by the launcher where the job asks for a codec."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from collectives.backend.process_group import NarrowgaugeGroup
from collectives.training.ddp import attach


def attach_new_models() -> None:
    """From now on, a DDP model over one of our groups is attached, with the options' codec, when it is first called.

    Models that have a comm hook by then, or that the script has attached itself, stay as they are.
    """
    make = DistributedDataParallel.__init__

    @functools.wraps(make)
    def make_attached(self: DistributedDataParallel, *args: Any, **named: Any) -> None:
        make(self, *args, **named)

        def first_call(model: nn.Module, inputs: Any) -> None:
            waiting.remove()
            if not self._comm_hooks and isinstance(self.process_group, NarrowgaugeGroup):
                attach(self)

        waiting = self.register_forward_pre_hook(first_call)

    DistributedDataParallel.__init__ = make_attached  # type: ignore[method-assign]
