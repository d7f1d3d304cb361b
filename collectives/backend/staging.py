"""Where a tensor's elements can be reached by the engine: plain contiguous memory of this machine.

Tensors that lie so already are used in place. Others (another device, strides, lazy conjugates) are copied to such
memory before an op and from it afterwards.

A device's tensors go through page-locked memory, on two streams of ours, one for each direction, which begin where the
caller's stream stands: `leaving` returns at once with what to call before the elements are read, so copies run beside
the network and the device never waits for the caller. `from_host` returns when the device holds the result, so any
stream may use it. Only `torch.accelerator` and `torch.Stream` are called, which mean every vendor's devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

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


def leaving(tensor: Tensor) -> tuple[Tensor, Callable[[], None] | None]:
    """As `to_host`, without waiting for the device.

    Returns:
        The host memory, and what returns when the elements are in it; None if they are there already.

    Raises:
        UsageError: the tensor has no elements to copy (meta) or is sparse.
    """
    if is_plain(tensor) or not _pins(tensor.device.type):
        return to_host(tensor), None
    host = room_for(tensor)
    stream = _side_stream(tensor.device, "out")
    stream.wait_stream(torch.accelerator.current_stream(tensor.device))
    with stream, torch.no_grad():
        host.copy_(tensor, non_blocking=True)
    return host, functools.partial(_arrive, stream.record_event(), tensor)


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
    if not _pins(tensor.device.type):
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    # What the caller has queued may still read the tensor; the result must not overtake it.
    _side_stream(tensor.device, "in").wait_stream(torch.accelerator.current_stream(tensor.device))
    return _page_locked(tensor.shape, tensor.dtype)


def from_host(host: Tensor, tensor: Tensor) -> None:
    """Bring a result to where it belongs; nothing happens if it is there already."""
    if host is tensor:
        return
    if not _pins(tensor.device.type):
        with torch.no_grad():
            tensor.copy_(host)
        return
    stream = _side_stream(tensor.device, "in")
    with stream, torch.no_grad():
        tensor.copy_(host, non_blocking=True)
    _arrive(stream.record_event(), host)


def as_bytes(plain: Tensor) -> Tensor:
    """The memory of a plain tensor as a vector of uint8."""
    # A tensor of one element may have any stride and be contiguous all the same; view(dtype) wants 1.
    return plain.detach().as_strided((plain.numel(),), (1,)).view(torch.uint8)


@functools.cache
def _side_stream(device: torch.device, direction: str) -> torch.Stream:
    return torch.Stream(device)


def _arrive(event: torch.Event, held: Tensor) -> None:
    """Return when the copies before `event` are done; `held`, which they read, lives until then."""
    event.synchronize()


def _page_locked(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=True)


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
