"""Scripts that ask for another backend by name get narrowgauge, without a change to them.

`install` puts itself into the one function of torch through which every process group is made, so it covers
`init_process_group`, `new_group` and all that build on them. The groups keep the name that the script asked for:
`dist.get_backend()` goes on to say "nccl" or "gloo", because scripts decide by it where their tensors live, and
`dist.monitored_barrier` insists on it. What a group really is, `group.name()` tells: "narrowgauge".
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from collectives.backend.c10d import c10d, dist
from collectives.errors import UsageError
from collectives.options import Options

logger = logging.getLogger(__name__)

_REPLACEABLE = ("gloo", "nccl", "mpi", "ucc", "xccl")


def install(replace: Sequence[str] = ("gloo", "nccl")) -> None:
    """From now on, groups of the named backends are made by narrowgauge in this process. All ranks must do the same.

    A script's ``backend=None`` counts as the backend that torch would take for this machine. A backend for each device
    ("cpu:gloo,cuda:nccl") is replaced if all its parts are named, and otherwise left alone, with a warning. Options
    made for the replaced backend (such as ProcessGroupNCCL.Options) are dropped, with a warning. Groups that exist
    already stay what they are. May be called again: the last call's `replace` holds.

    Raises:
        UsageError: `replace` names something else than gloo, nccl, mpi, ucc or xccl.
    """
    unknown = sorted(set(replace) - set(_REPLACEABLE))
    if unknown or isinstance(replace, str):
        raise UsageError(f"install() got replace={replace!r}; wanted a list of names out of {', '.join(_REPLACEABLE)}")
    uninstall()
    c10d._new_process_group_helper = _replacing(c10d._new_process_group_helper, frozenset(replace))


def uninstall() -> None:
    """Undo `install`: names mean what torch says again. Groups that exist already stay what they are."""
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
            logger.warning("dropping the script's %s: the group is made by narrowgauge", type(backend_options).__name__)
            backend_options = None
        made = helper(
            size, rank, ranks, dist.Backend("narrowgauge"), store, group_name, backend_options=backend_options, **more
        )
        group = made[0]
        if group in c10d._world.pg_map:
            c10d._world.pg_map[group] = (backend, c10d._world.pg_map[group][1])
            c10d._world.pg_backend_config[group] = str(c10d.BackendConfig(backend))
        return made

    return make_group


def _is_replaced(backend: str, replaced: frozenset[str]) -> bool:
    if backend == dist.Backend.UNDEFINED:
        return _default_backend() in replaced
    parts = {part.rpartition(":")[2] for part in backend.lower().split(",")}
    if parts & replaced and parts - replaced:
        logger.warning("leaving backend %r alone: it names %s too", backend, ", ".join(sorted(parts - replaced)))
    return parts <= replaced


def _default_backend() -> str:
    accelerator = torch.accelerator.current_accelerator()
    return str(dist.Backend.default_device_backend_map.get(accelerator.type if accelerator else "cpu"))
