"""A script that insists on an accelerator finds the CPU in its place.

Published examples ask for CUDA, or for whatever accelerator there is, and end without one. `pretend` answers such a
script that there are eight, and that they are the CPU. torch and the backend under test get the true answer: only the
script is to believe it. It is the same for both backends, so it does not touch the comparison.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

CPU = torch.device("cpu")


def pretend() -> None:
    """Replace what asks for accelerators, in this process and for good."""
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 8,
        "current_accelerator": CPU,
        "set_device_index": None,
        "device_index": nullcontext(),
    }
    for name, answer in answers.items():
        setattr(torch.accelerator, name, _for_the_script(getattr(torch.accelerator, name), answer))
    for name in ("set_device", "synchronize"):
        setattr(torch.cuda, name, lambda *_arguments, **_named: None)
    torch.Tensor.pin_memory = lambda self, *_device: self  # type: ignore[method-assign]
    for owner in (torch.Tensor, torch.nn.Module):
        owner.to = _on_cpu(owner.to)  # type: ignore[method-assign]
    torch.tensor = _on_cpu(torch.tensor)
    parallel = torch.nn.parallel.DistributedDataParallel
    parallel.__init__ = _without_device_ids(parallel.__init__)  # type: ignore[method-assign]
    torch.distributed.init_process_group = _without_device_id(torch.distributed.init_process_group)


def _for_the_script(original: Callable[..., Any], answer: Any) -> Callable[..., Any]:
    @functools.wraps(original)
    def asked(*arguments: Any, **named: Any) -> Any:
        asker = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
        return original(*arguments, **named) if asker in ("torch", "collectives") else answer

    return asked


def _on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def moved(*arguments: Any, **named: Any) -> Any:
        if "device" in named:
            named["device"] = _as_cpu(named["device"])
        if len(arguments) > 1 and original.__name__ == "to":
            arguments = (arguments[0], _as_cpu(arguments[1]), *arguments[2:])
        return original(*arguments, **named)

    return moved


def _as_cpu(device: Any) -> Any:
    """A device that is not here as the CPU; anything else, such as a type, as it is."""
    absent = isinstance(device, int) or (isinstance(device, str) and device.startswith("cuda"))
    return CPU if absent or (isinstance(device, torch.device) and device.type == "cuda") else device


def _without_device_id(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def initialized(*arguments: Any, device_id: Any = None, **named: Any) -> None:
        original(*arguments, **named)

    return initialized


def _without_device_ids(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def made(
        self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *more: Any, **named: Any
    ) -> None:
        original(self, module, None, None, *more, **named)

    return made
