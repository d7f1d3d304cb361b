"""Copies tensors to memory that the engine can read and write: contiguous host memory, here called plain.

Plain tensors are used in place. Others (on a device, strided, lazily conjugated) are copied to plain memory before an
op and back after it.

Tensors on a device go through page-locked memory, on two side streams for each device:

    caller's stream   ... kernels that write the gradient ...
    stream "out"          waits for them -> copy to host -> event      the staging thread waits for the event,
                                                                       then starts the op (process_group.py)
    stream "in"           copy to the device -> event                  a helper thread waits for the event,
                                                                       then settles the Work

Two streams, because a device copies in both directions at once: results of one chunk come back while the next chunk
leaves. Side streams, because copies on the caller's stream would queue behind the backward pass that they should
overlap. `from_host` returns only when the device holds the result, so the caller may use it on any stream without
another event. What is computed with a result in a future's callback runs on streams of torch's choice: `future_of`
says how these are joined. Only `torch.accelerator` and `torch.Stream` are used, so the code is the same for every
vendor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from collectives.errors import UsageError


def is_plain(tensor: Tensor) -> bool:
    """Whether the engine may read and write the tensor in place."""
    return (
        tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
        and (tensor.data_ptr() != 0 or tensor.numel() == 0)  # wrapper subclasses hold their elements elsewhere
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
        The host memory, and a function that blocks until the elements are in it; None if they are there already.

    Raises:
        UsageError: the tensor has no elements to copy (meta) or is sparse.
    """
    if is_plain(tensor) or not _pins(tensor.device.type):
        return to_host(tensor), None
    host = room_for(tensor)
    stream = _side_stream(tensor.device, "out")
    # The kernels that compute the tensor are queued on the caller's stream and may not have run yet.
    stream.wait_stream(torch.accelerator.current_stream(tensor.device))
    with stream, torch.no_grad():
        host.copy_(tensor, non_blocking=True)
    return host, functools.partial(_wait_for_copy, stream.record_event(), tensor)


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
    _let_the_caller_go_first(tensor.device)
    return _page_locked(tensor.shape, tensor.dtype)


def let_callers_go_first(outputs: Sequence[Tensor]) -> None:
    """Call in the caller's thread for tensors that get results by `from_host` from memory that `room_for` did not make:
    the copies then come after what the caller has queued."""
    for device in {tensor.device for tensor in outputs if not is_plain(tensor) and _pins(tensor.device.type)}:
        _let_the_caller_go_first(device)


def _let_the_caller_go_first(device: torch.device) -> None:
    # Kernels that the caller has queued may still read a tensor; the result must not overwrite it before they ran.
    _side_stream(device, "in").wait_stream(torch.accelerator.current_stream(device))


def from_host(host: Tensor, tensor: Tensor) -> None:
    """Copy a result from `host` to `tensor` and wait until it is there; no copy if `host` is the tensor."""
    if host is tensor:
        return
    if not _pins(tensor.device.type):
        with writing_to(tensor):
            tensor.copy_(host)
        return
    stream = _side_stream(tensor.device, "in")  # `room_for` or `let_callers_go_first` made it wait for the caller's
    with stream, writing_to(tensor):
        tensor.copy_(host, non_blocking=True)
    _wait_for_copy(stream.record_event(), host)


def writing_to(tensor: Tensor) -> AbstractContextManager[None]:
    """Lets this thread write to a caller's tensor, or to memory that was made for it in the caller's thread.

    Inference mode is a thread's, and tensors made in it may be written only in it. Results are mostly copied by threads
    of ours. A tensor made outside may be written in both.
    """
    return torch.inference_mode() if tensor.is_inference() else torch.no_grad()


def future_of(tensors: Sequence[Tensor]) -> torch.futures.Future[Any]:
    """A future whose result is, or holds, these tensors. Futures that `then` makes of it are of the same kind.

    Work on a device is only queued when a callback returns, and callbacks run on threads and streams other than their
    caller's. A future that knows its devices carries the order along. To complete it with a tensor records an event on
    the current stream; a callback's stream and the current stream of whoever waits then wait for that event, and keep
    the tensor's memory from reuse. So complete it with the tensors, not with None, where work on them may be queued.
    """
    devices = {tensor.device for tensor in tensors if _pins(tensor.device.type)}
    return torch.futures.Future(devices=list(devices))


def used_on_this_stream(tensors: Sequence[Tensor]) -> None:
    """Call in a future's callback for tensors that other streams made and that go when it returns.

    torch's allocator would take their memory for free while this stream still has work queued on them.
    """
    for tensor in tensors:
        if _pins(tensor.device.type):
            tensor.record_stream(torch.accelerator.current_stream(tensor.device))


def as_bytes(plain: Tensor) -> Tensor:
    """The memory of a plain tensor as a vector of uint8."""
    # A tensor of one element counts as contiguous whatever its stride, but view(dtype) requires a stride of 1.
    return plain.detach().as_strided((plain.numel(),), (1,)).view(torch.uint8)


@functools.cache
def _side_stream(device: torch.device, direction: str) -> torch.Stream:
    """One stream for each device and direction, for the life of the process."""
    return torch.Stream(device)


def _wait_for_copy(event: torch.Event, source: Tensor) -> None:
    """Block until the copy before `event` is done.

    `source` is an argument so that it stays alive: torch's allocator may reuse memory as soon as the last reference is
    gone, and it does not know that a side stream still reads it.
    """
    event.synchronize()


def _page_locked(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=True)


@functools.cache
def _pins(device_type: str) -> bool:
    """Whether page-locked memory exists for this kind of device.

    Without it a copy blocks its caller, whatever the stream, so staging then is a plain synchronous copy.
    """
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or accelerator.type != device_type:
        return False
    try:
        return torch.empty(1, pin_memory=True).is_pinned()
    except RuntimeError:  # the device's extension has no allocator for it
        return False
