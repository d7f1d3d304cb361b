"""A group with an engine for each kind of device, as torch has a backend for each in "cpu:gloo,cuda:nccl".

    tensors on the CPU      this group itself
    tensors on a device     that device's part: a whole group, with connections, a thread and an order of its own

Programs rely on it: `dcp.async_save` runs collectives of CPU tensors in a thread, beside the gradients on the device.
Within a part all ranks must start the same ops in the same order, between parts there is no order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from collectives.backend import process_group
from collectives.backend.c10d import Store, c10d, dist
from collectives.backend.process_group import NarrowgaugeGroup
from collectives.backend.untraced import untraced
from collectives.options import Options
from collectives.transport.watched_store import Endings

ROUTED = (
    "allreduce", "all_reduce_coded", "allreduce_coalesced", "reduce", "broadcast", "allgather", "allgather_coalesced",
    "all_gather_single", "_allgather_base", "all_gather_single_coalesced", "allgather_into_tensor_coalesced",
    "reduce_scatter", "reduce_scatter_single", "_reduce_scatter_base", "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced", "alltoall", "all_to_all_single", "alltoall_base", "gather", "gather_single",
    "gather_into_tensor", "scatter", "barrier", "send", "recv", "recv_anysource",
)  # fmt: skip
"""Methods that go to the part of their first tensor's device; a barrier goes to that of its options' device."""


@dataclass(frozen=True)
class ByDevice:
    """In place of options: makes the group a `GroupByDevice`.

    Attributes:
        options: of the group; None for those in force.
        parts: the kinds of devices of each part, such as ``(("cuda",),)``; the CPU's part is not named.
    """

    options: Options | None
    parts: tuple[tuple[str, ...], ...]


def parts_of(device_backends: dict[str, str]) -> tuple[tuple[str, ...], ...]:
    """The parts that torch would make beside that of the CPU: one for each backend that is named.

    Args:
        device_backends: name of the backend by kind of device.
    """
    by_backend: dict[str, list[str]] = {}
    for device_type, backend in device_backends.items():
        by_backend.setdefault(backend, []).append(device_type)
    return tuple(tuple(types) for types in by_backend.values() if "cpu" not in types) if len(by_backend) > 1 else ()


def create(torch_options: Any, pg_options: object = None) -> NarrowgaugeGroup:
    """Make a group of backend "narrowgauge"; torch calls this.

    Args:
        torch_options: torch's _DistributedBackendOptions.
        pg_options: the script's pg_options, `ByDevice` with them in it, or None.

    Raises:
        UsageError: pg_options are of another backend.
        RendezvousError: the ranks did not find each other.
    """
    if isinstance(pg_options, ByDevice):
        make = functools.partial(GroupByDevice, parts=pg_options.parts)
        return process_group.create(torch_options, pg_options.options, make)
    return process_group.create(torch_options, pg_options)


class GroupByDevice(NarrowgaugeGroup):
    """As `NarrowgaugeGroup`, with parts.

    A part is made only if all ranks have a device of its kind. Where just some have one, their tensors must meet the
    host memory of the others, and one engine serves all.
    """

    def __init__(
        self, store: Store, rank: int, size: int, name: str, timeout_s: float, settings: Options,
        parent: Endings | None = None, *, parts: Sequence[tuple[str, ...]],
    ) -> None:  # fmt: skip
        super().__init__(store, rank, size, name, timeout_s, settings, parent)
        self._wanted_parts = parts
        self._parts: dict[str, NarrowgaugeGroup] = {}
        try:
            for types in parts:
                if {*self.accelerators} <= {*types}:
                    apart = dist.PrefixStore(f"device/{types[0]}", store)
                    part = NarrowgaugeGroup(apart, rank, size, f"{name}/{types[0]}", timeout_s, settings, parent)
                    self._parts.update(dict.fromkeys(types, part))
        except BaseException:
            self.shutdown()
            raise

    def _get_backend(self, device: torch.device) -> NarrowgaugeGroup:
        return self._parts.get(torch.device(device).type, self)

    def _new_group(self, *arguments: Any) -> NarrowgaugeGroup:
        return GroupByDevice(*arguments, parts=self._wanted_parts)

    def show_as(self, names: Mapping[str, str]) -> None:
        """As for any group; each part by its own kind of device."""
        super().show_as(names)
        for device_type in self._parts.keys() & names.keys():
            self._parts[device_type].show_as({device_type: names[device_type]})

    def shutdown(self) -> None:
        """Leave the group with all its parts."""
        for part in self._parts.values():
            part.shutdown()
        super().shutdown()

    abort = shutdown

    def set_timeout(self, timeout: timedelta) -> None:
        """Seconds without progress after which ops that are called from now on fail, in all parts."""
        super().set_timeout(timeout)
        for part in self._parts.values():
            part.set_timeout(timeout)

    _set_default_timeout = set_timeout


def _routed(name: str) -> Callable[..., Any]:
    method = getattr(NarrowgaugeGroup, name)

    @functools.wraps(method)
    def call(self: GroupByDevice, *given: Any, **named: Any) -> Any:
        device_type = _device_type([*given, *named.values()])
        return method(self if device_type is None else self._parts.get(device_type, self), *given, **named)

    return call


for _name in ROUTED:
    setattr(GroupByDevice, _name, _routed(_name))
untraced(GroupByDevice)


def _device_type(values: Iterable[Any]) -> str | None:
    """Of the first tensor among the values and in their lists; None if there is none."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device.type
        if isinstance(value, (list, tuple)):
            if (found := _device_type(value)) is not None:
                return found
        elif isinstance(value, c10d.BarrierOptions) and value.device is not None:
            return str(value.device.type)
    return None
