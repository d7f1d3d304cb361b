"""Registers the backend with torch: at once if torch.distributed is loaded, otherwise right after its import.

`import collectives` must not import torch, which takes seconds, and a script may import the two in any order. So an
import hook waits for torch.distributed and runs the registration at the end of that module's own import.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from collectives.options import BACKEND

TORCH_DISTRIBUTED = "torch.distributed.distributed_c10d"


def register(c10d: ModuleType) -> None:
    """Register the backend; its code is loaded when the first group is made."""

    def create(torch_options: Any, pg_options: object = None) -> Any:
        from collectives.backend.by_device import create as create_group

        return create_group(torch_options, pg_options)

    c10d.Backend.register_backend(BACKEND, create, extended_api=True, devices=["cpu", "cuda", "xpu"])
    # From 2.15 torch hangs its flight recorder on groups whose backend keeps none. It listens to torch's own dispatch,
    # which a group of Python methods does not pass through, and refuses such a group.
    record_themselves: set[str] = getattr(c10d, "_FR_SELF_RECORDING_BACKENDS", set())
    record_themselves.add(BACKEND)


class _RegisterOnImport(importlib.abc.MetaPathFinder):
    """Registers the backend when torch.distributed is imported, once; finds no other module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != TORCH_DISTRIBUTED:
            return None
        sys.meta_path.remove(self)  # before the search below, which would come back here
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                register(module)

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Register now if torch.distributed is loaded, otherwise right after its import."""
    if TORCH_DISTRIBUTED in sys.modules:
        register(sys.modules[TORCH_DISTRIBUTED])
    else:
        sys.meta_path.insert(0, _RegisterOnImport())
