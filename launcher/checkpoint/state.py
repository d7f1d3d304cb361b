"""The contents of a checkpoint: model and optimizer unsharded, random numbers, and objects with a state.

This module converts them to files and back, and moves them between ranks. Which files are complete is decided in
`files`, and who raises what in `checkpoints`. Files are pickles, as those of torch.save are: load only checkpoints that
you trust.
"""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import filesystem, state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

Optimizers = Sequence[torch.optim.Optimizer]
Names = Mapping[str, list[int]]
"""Shapes of a model's parameters and buffers by name."""


# ---- model and optimizer -------------------------------------------------------------------------------------------


def gather_state(model: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    """Model and optimizer unsharded, on the CPU of rank 0; the other ranks get empty dicts. All ranks call it, since
    sharded tensors are gathered."""
    # cpu_offload, since the unsharded model may not fit into an accelerator.
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = {"model": get_model_state_dict(model, options=options)}
    if optimizers:
        state["optimizer"] = get_optimizer_state_dict(model, tuple(optimizers), options=options)
    return state


def load_state(state: dict[str, Any], stateless: bool, model: nn.Module, optimizers: Optimizers) -> None:
    """Load what `gather_state` returned, from rank 0 into every rank's model and optimizers. All ranks call it.

    Args:
        state: on rank 0; anything on the others.
        stateless: whether the optimizers keep nothing but their settings, as SGD without momentum does. Torch
            broadcasts tensors by parameter, so settings alone are sent as an object.
    """
    shared = dist.is_initialized()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=shared)
    set_model_state_dict(model, state.get("model", {}), options=options)
    # Not strict: a parameter that has had no gradient so far has no optimizer state.
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=shared, strict=False)
    if optimizers and stateless:
        settings = broadcast(state.get("optimizer"))
        set_optimizer_state_dict(model, tuple(optimizers), settings)
    elif optimizers:
        set_optimizer_state_dict(model, tuple(optimizers), state.get("optimizer", {}), options=options)


def write_state(state: dict[str, Any], folder: Path) -> None:
    """Write with torch.distributed.checkpoint, from this process alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # by no_dist=True, on purpose
        state_dict_saver.save(state, storage_writer=filesystem.FileSystemWriter(folder), no_dist=True)


def read_state(folder: Path) -> dict[str, Any]:
    """Read what `write_state` wrote.

    torch.distributed.checkpoint loads into existing tensors only. The metadata has their shapes and dtypes, so they are
    created from it, and the nesting is restored from the planner's data.
    """
    reader = filesystem.FileSystemReader(folder)
    metadata = reader.read_metadata()
    flat: dict[str, Any] = {
        name: torch.empty(kind.size, dtype=kind.properties.dtype) if isinstance(kind, TensorStorageMetadata) else None
        for name, kind in metadata.state_dict_metadata.items()
    }
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        state_dict_loader.load(flat, storage_reader=reader, planner=planner, no_dist=True)
    # Keys are flat in the files ("model.0.weight"), and a name may contain dots, so the planner recorded the paths.
    nested: dict[str, Any] = {"model": {}, "optimizer": {"state": {}}}  # empty dicts are not written
    for name, path in metadata.planner_data.items():
        _put(nested, path, flat[name])
    return nested


def shapes(model: nn.Module) -> dict[str, list[int]]:
    """Names and shapes that a checkpoint of this model has."""
    found = get_model_state_dict(model)
    return {name: list(value.shape) if isinstance(value, torch.Tensor) else [] for name, value in found.items()}


def difference(saved: Names, wanted: Names) -> str | None:
    """How the model of a checkpoint differs from the one to load it into; None if it does not."""
    missing = [name for name in wanted if name not in saved]
    unexpected = [name for name in saved if name not in wanted]
    other = [
        f"{name} {_shape(saved[name])} for {_shape(wanted[name])}"
        for name in wanted
        if name in saved and list(saved[name]) != list(wanted[name])
    ]
    parts = [
        *([f"it lacks {_listed(missing)}"] if missing else []),
        *([f"it has {_listed(unexpected)}, which the model has not"] if unexpected else []),
        *([f"shapes differ: {_listed(other)}"] if other else []),
    ]
    return "; ".join(parts) or None


def has_state(optimizer_state: Mapping[str, Any]) -> bool:
    """Whether an optimizer keeps tensors for its parameters. Step counters, which have no dimension, do not count."""
    return any(
        isinstance(value, torch.Tensor) and value.dim() > 0
        for kept in optimizer_state.get("state", {}).values()
        for value in kept.values()
    )


# ---- state of each rank --------------------------------------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """States of the random number generators: python, numpy, torch and the current CUDA device."""
    # Asking for the CUDA state would start CUDA in a process that does not use it.
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def local_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that may differ between ranks, such as the statistics of a BatchNorm, without non-persistent ones."""
    kept = set(model.state_dict())
    # A sharded buffer is in the model's state already, and its local part depends on the number of ranks.
    return {
        name: buffer.detach().cpu()
        for name, buffer in model.named_buffers()
        if name in kept and not isinstance(buffer, DTensor)
    }


@torch.no_grad()
def set_local_buffers(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Restore what `local_buffers` returned."""
    for name, buffer in model.named_buffers():
        if name in state:
            buffer.copy_(state[name])


def state_of(thing: Any) -> Any:
    """The state of an object, by `state_dict`, or by `get_state` as generators have it."""
    return thing.state_dict() if hasattr(thing, "state_dict") else thing.get_state()


def set_state_of(thing: Any, state: Any) -> None:
    """Restore what `state_of` returned."""
    if hasattr(thing, "load_state_dict"):
        thing.load_state_dict(state)
    else:
        thing.set_state(state)


def to_bytes(state: Any) -> bytes:
    """The state as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(text: bytes) -> Any:
    """The reverse of `to_bytes`. Tensors of accelerators come to the CPU: this machine may have other ones."""
    return torch.load(io.BytesIO(text), map_location="cpu", weights_only=False)


# ---- between ranks -------------------------------------------------------------------------------------------------


def broadcast(value: Any) -> Any:
    """Rank 0's value, on all ranks."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list[Any]:
    """Every rank's value, by rank, on rank 0; empty on the others."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, found, dst=0)
    return found or []


def scatter(values: list[bytes]) -> bytes:
    """The value of each rank, from rank 0's list."""
    if not dist.is_initialized():
        return values[0]
    box: list[Any] = [None]
    dist.scatter_object_list(box, values if dist.get_rank() == 0 else None, src=0)
    return bytes(box[0])


# ---- small parts ---------------------------------------------------------------------------------------------------


def _put(nested: dict[str, Any], path: Sequence[str | int], value: Any) -> None:
    """Set nested[path[0]][path[1]]..., where an int is an index into a list. Creates the dicts and lists on the way."""
    holder: Any = nested
    for part, following in zip(path, [*path[1:], None], strict=True):
        if isinstance(holder, list):
            holder.extend([None] * (int(part) + 1 - len(holder)))
            there = holder[int(part)]
        else:
            there = holder.get(part)
        if following is None:
            holder[part] = value
            return
        if there is None:
            holder[part] = there = [] if isinstance(following, int) else {}
        holder = there


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single value"


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
