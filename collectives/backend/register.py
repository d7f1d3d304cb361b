"""Makes the backend known to torch: at once if torch is loaded, otherwise as soon as torch.distributed is."""

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
    """Make the backend known to torch; its code is loaded when the first group is made."""

    def create(torch_options: Any, pg_options: object = None) -> Any:
        from collectives.backend.process_group import create as create_group

        return create_group(torch_options, pg_options)

    c10d.Backend.register_backend(BACKEND, create, extended_api=True, devices=["cpu", "cuda", "xpu"])


class _RegisterOnImport(importlib.abc.MetaPathFinder):
    """Waits for torch.distributed to be imported, registers the backend with it, and leaves."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != TORCH_DISTRIBUTED:
            return None
        sys.meta_path.remove(self)
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
