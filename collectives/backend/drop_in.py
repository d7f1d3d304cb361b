"""Scripts that ask for another backend by name get narrowgauge, without a change to them.

`install` wraps the one function of torch that makes every process group, so it covers `init_process_group`, `new_group`
and everything built on them. A group keeps the name that the script asked for: `dist.get_backend()` still returns
"nccl" or "gloo", because scripts choose the device of their tensors by it and `dist.monitored_barrier` requires it.
`group.name()` returns the truth, "narrowgauge".
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from collectives.backend.by_device import ByDevice, parts_of
from collectives.backend.c10d import c10d, dist
from collectives.errors import UsageError
from collectives.options import Options

logger = logging.getLogger(__name__)

_REPLACEABLE = ("gloo", "nccl", "mpi", "ucc", "xccl")


def install(replace: Sequence[str] = ("gloo", "nccl")) -> None:
    """Replace the named backends by narrowgauge in this process, for groups made from now on. All ranks must call it.

    A script's ``backend=None`` counts as the backend that torch would take on this machine. A backend for each device
    ("cpu:gloo,cuda:nccl") is replaced if all its parts are named, and otherwise left alone, with a warning. The group
    then has an engine for each, so collectives of CPU tensors and of device tensors are ordered apart, as with torch's
    two backends; if only some of the ranks have such a device, one engine serves all. Options made for the replaced
    backend (such as ProcessGroupNCCL.Options) are dropped, with a warning. Existing groups do not change. A second call
    replaces the first.

    Args:
        replace: names of backends: "gloo", "nccl", "mpi", "ucc" or "xccl".

    Raises:
        UsageError: another name in `replace`.
    """
    unknown = sorted(set(replace) - set(_REPLACEABLE))
    if unknown or isinstance(replace, str):
        raise UsageError(f"install() got replace={replace!r}; wanted a list of names out of {', '.join(_REPLACEABLE)}")
    uninstall()
    c10d._new_process_group_helper = _replacing(c10d._new_process_group_helper, frozenset(replace))


def uninstall() -> None:
    """Undo `install` for groups made from now on. Existing groups do not change."""
    c10d._new_process_group_helper = getattr(
        c10d._new_process_group_helper, "__wrapped__", c10d._new_process_group_helper
    )


def _replacing(helper: Callable[..., Any], replaced: frozenset[str]) -> Callable[..., Any]:
    """torch's helper, which takes (size, rank, global ranks, backend, store, name, options, ...), with our backend."""

    @functools.wraps(helper)
    def make_group(
        size: int, rank: int, ranks: list[int], backend: Any, store: Any, group_name: Any,
        backend_options: Any = None, **more: Any,
    ) -> Any:  # fmt: skip
        if not _is_replaced(str(backend), replaced):
            return helper(size, rank, ranks, backend, store, group_name, backend_options=backend_options, **more)
        if backend_options is not None and not isinstance(backend_options, Options):
            logger.warning("ignoring the script's %s: narrowgauge makes this group", type(backend_options).__name__)
            backend_options = None
        names = c10d.BackendConfig(backend).get_device_backend_map()
        if parts := parts_of(names):
            backend_options = ByDevice(backend_options, parts)
        made = helper(
            size, rank, ranks, dist.Backend("narrowgauge"), store, group_name, backend_options=backend_options, **more
        )
        group = made[0]
        if group in c10d._world.pg_map:
            c10d._world.pg_map[group] = (backend, c10d._world.pg_map[group][1])
            c10d._world.pg_backend_config[group] = str(c10d.BackendConfig(backend))
            group.show_as(names)
        return made

    return make_group


def _is_replaced(backend: str, replaced: frozenset[str]) -> bool:
    if backend == dist.Backend.UNDEFINED:
        return _default_backend() in replaced
    parts = {part.rpartition(":")[2] for part in backend.lower().split(",")}
    if parts & replaced and parts - replaced:
        logger.warning(
            "not replacing backend %r: it also names %s, which install() was not given",
            backend, ", ".join(sorted(parts - replaced)),
        )  # fmt: skip
    return parts <= replaced


def _default_backend() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return str(dist.Backend.default_device_backend_map.get(accelerator.type if accelerator else "cpu"))
