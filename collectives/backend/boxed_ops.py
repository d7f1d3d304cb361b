"""`torch.ops.c10d.*` on our groups: torch's own operators, which take a group that was boxed for C++.

These operators do not call the group. They ask it for its backend for the tensors' device and call that, in C++. Ours
is an object that hands every call back to the group. Torch lets Python make such an object from 2.14 on; with an older
torch these operators fail with torch's "No backend type associated with device type cpu", before anything of ours is
asked.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any

from collectives.backend.c10d import TorchBackend, dist
from collectives.backend.untraced import untraced
from collectives.errors import GroupClosed

FORWARDED = (
    *("allreduce", "allreduce_coalesced", "reduce", "broadcast", "allgather", "allgather_coalesced"),
    *("all_gather_single", "all_gather_single_coalesced", "reduce_scatter", "reduce_scatter_single"),
    *("reduce_scatter_single_coalesced", "alltoall", "all_to_all_single", "gather", "scatter", "barrier"),
    *("send", "recv", "recv_anysource"),
)


def serve(group: Any) -> None:
    """Let torch's operators find a group of ours, where this torch can."""
    if isinstance(TorchBackend.__init__, types.WrapperDescriptorType):  # no constructor: only C++ can make one
        return
    backend = _forwarding()(group)
    for device in group._device_types:
        group._register_backend(device, dist.ProcessGroup.BackendType.CUSTOM, backend)


def _forwarding() -> Any:
    """The class; made here, since an older torch refuses to have a subclass made."""

    class Forwarding(TorchBackend):  # type: ignore[misc]
        """The backend of one group, which holds it, so it must not hold the group."""

        def __init__(self, group: Any) -> None:
            super().__init__(group.rank(), group.size())
            self._group = weakref.ref(group)

        def getBackendName(self) -> str:  # noqa: N802
            return "narrowgauge"

    for name in FORWARDED:
        setattr(Forwarding, name, _forwarder(name))
    return untraced(Forwarding)


def _forwarder(name: str) -> Callable[..., Any]:
    def forward(self: Any, *given: Any) -> Any:
        group = self._group()
        if group is None:
            raise GroupClosed(f"torch.ops.c10d: {name} on a group that is gone")
        return getattr(group, name)(*given)

    return forward
