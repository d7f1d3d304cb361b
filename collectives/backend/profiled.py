"""Our ops as events in torch's profiler, as torch's own backends leave them.

    narrowgauge::all_reduce   in the caller's thread, an instant: elements, dtype and group of the call
    narrowgauge:all_reduce    from the call until the op is over, with its inputs' shapes; another thread ends it

torch's backends call the first one `record_param_comms`. That name cannot be used from Python: for it the profiler
looks for a C++ object that only C++ can make, and torch 2.13 crashes if there is none. The keys of the details are the
same.

An event belongs to the thread in which it begins, where a profiler is active; another thread can end it only with that
thread's local state. `_call_end_callbacks_on_jit_fut` takes the state along with the future that ends the event. An
event that begins in one thread and ends in another is an asynchronous one.

Where no profiler is active nothing of this is done: the callers look at `is_active` first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _record_function_with_args_enter
from torch._C._profiler import _RecordFunctionFast
from torch.autograd import profiler


def is_active() -> bool:
    """Whether torch's profiler is on in this process: the look-up of one flag."""
    return profiler._is_profiler_enabled


class OpEvent:
    """The event of one op; begins when it is made.

    Args:
        backend, op: the title's two parts.
        given: the op's inputs on this rank: tensors, in lists of any depth.
        details: what else there is to say, by the names that torch has for it.
    """

    def __init__(self, backend: str, op: str, given: Any, details: dict[str, int | str]) -> None:
        inputs = list(_flat(given))
        details = {
            "Collective name": op,
            "dtype": str(inputs[0].dtype).removeprefix("torch.") if inputs else "",
            "In msg nelems": sum(each.numel() for each in inputs),
            **details,
        }
        with _RecordFunctionFast(f"{backend}::{op}", [], details):
            pass
        record = _record_function_with_args_enter(f"{backend}:{op}", *inputs)
        self._over: torch.futures.Future[None] = torch.futures.Future()
        self._ended = threading.Event()
        with torch._C.DisableTorchFunctionSubclass():
            torch.ops.profiler._call_end_callbacks_on_jit_fut._RecordFunction(record, self._over)

    def end(self) -> None:
        """The op is over, well or badly; call it once, from any thread but that of the call."""
        self._over.set_result(None)
        self._ended.set()

    def wait(self) -> None:
        """Return when another thread has ended the event."""
        self._ended.wait()


def _flat(given: Tensor | Sequence[Any]) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    else:
        for each in given:
            yield from _flat(each)
