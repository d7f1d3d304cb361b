"""Where a tensor's elements can be reached by the engine: plain contiguous memory of this machine.

Tensors that lie so already are used in place. Others (another device, strides, lazy conjugates) are copied to such
memory before an op and from it afterwards. Device copies are synchronous: `to_host` returns when all work that was
queued on the tensor's device before it, on the caller's stream, has left its mark in host memory, and `from_host`
returns when the device holds the result, so any stream may use it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from collectives.errors import UsageError


def is_plain(tensor: Tensor) -> bool:
    """Whether the engine may read and write the tensor where it is."""
    return (
        tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
        and (tensor.data_ptr() != 0 or tensor.numel() == 0)  # wrapper subclasses have no memory of their own
    )


def to_host(tensor: Tensor) -> Tensor:
    """The tensor's elements in plain memory, same shape and dtype: the tensor itself if it is plain, else a copy.

    Raises:
        UsageError: the tensor has no elements to copy (meta) or is sparse.
    """
    if is_plain(tensor):
        return tensor
    host = room_for(tensor)
    with torch.no_grad():
        host.copy_(tensor)
    return host


def room_for(tensor: Tensor) -> Tensor:
    """Plain memory for a result that belongs in `tensor`: the tensor itself if it is plain, else new memory.

    Raises:
        UsageError: the tensor has no elements to receive (meta) or is sparse.
    """
    if is_plain(tensor):
        return tensor
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        kind = "a meta tensor" if tensor.device.type == "meta" else f"layout {tensor.layout}"
        raise UsageError(f"got {kind} of shape {tuple(tensor.shape)}; collectives take dense tensors with data")
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=_pins(tensor.device.type))


def from_host(host: Tensor, tensor: Tensor) -> None:
    """Bring a result to where it belongs; nothing happens if it is there already."""
    if host is not tensor:
        with torch.no_grad():
            tensor.copy_(host)


def as_bytes(plain: Tensor) -> Tensor:
    """The memory of a plain tensor as a vector of uint8."""
    # A tensor of one element may have any stride and be contiguous all the same; view(dtype) wants 1.
    return plain.detach().as_strided((plain.numel(),), (1,)).view(torch.uint8)


@functools.cache
def _pins(device_type: str) -> bool:
    """Whether there is page-locked memory for this kind of device; copies to and from it run at the bus's speed."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or accelerator.type != device_type:
        return False
    try:
        return torch.empty(1, pin_memory=True).is_pinned()
    except RuntimeError:  # the device's extension has no allocator for it
        return False
