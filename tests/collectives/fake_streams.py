"""A fake device with streams, which finds work that is not ordered: what a GPU would do wrong only now and then.

    with Stream().current(): ...          work on `StreamTensor`s made in here is queued on this stream
    install()                             the engine's staging and torch's futures use the fake device from now on
    problems                              what was found

No clock runs. A stream knows which pieces of work come before whatever is queued on it next: its own, and those of
streams that it has joined. Work on memory must come after all work that wrote it, writing also after all that read it;
memory may go when the stream that made it comes after all work on it, or was told of the other streams.

Copies between host and device are taken to be over when their call returns, and with one that leaves the device all
work before it: staging waits for them on the host.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from collectives.backend import staging

problems: list[str] = []
_over: set[int] = set()  # work that the host has waited for
_numbers = itertools.count()
_local = threading.local()


class Stream:
    """Attributes: seen: numbers of the pieces of work that come before the next one."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    @contextlib.contextmanager
    def current(self) -> Iterator[Stream]:
        before, _local.stream = this_stream(), self
        try:
            yield self
        finally:
            _local.stream = before


DEFAULT = Stream()


def this_stream() -> Stream:
    return getattr(_local, "stream", DEFAULT)


class Memory:
    """What the tensors that view it have in common."""

    def __init__(self) -> None:
        self.made_on, self.writes, self.reads = this_stream(), set[int](), set[int]()
        self.recorded: list[Stream] = [this_stream()]

    def check(self, what: object, is_written: bool) -> None:
        if (self.writes | self.reads if is_written else self.writes) - this_stream().seen - _over:
            problems.append(f"{what} is not ordered after earlier work on its memory")

    def __del__(self) -> None:
        known = set().union(*(stream.seen for stream in self.recorded))
        if (self.writes | self.reads) - known - _over:
            problems.append("memory goes while work on it is queued on a stream that its allocator does not know")


class StreamTensor(Tensor):
    """A tensor on the fake device; its elements are in `host`."""

    host: Tensor
    memory: Memory

    @staticmethod
    def __new__(cls, host: Tensor, memory: Memory | None = None) -> StreamTensor:
        made: StreamTensor = Tensor._make_wrapper_subclass(cls, host.shape, dtype=host.dtype, device="fake:0")  # type: ignore[attr-defined]
        made.host, made.memory = host, memory or Memory()
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        named = named or {}
        if function is torch.ops.aten.record_stream.default:
            given[0].memory.recorded.append(this_stream())
            return None
        ours = [leaf for leaf in pytree.tree_leaves((given, named)) if isinstance(leaf, StreamTensor)]
        of_storage = {tensor.host.untyped_storage().data_ptr(): tensor.memory for tensor in ours}
        plain = pytree.tree_map_only(StreamTensor, lambda tensor: tensor.host, (given, named))
        plain[1].pop("device", None)
        result = function(*plain[0], **plain[1])
        is_staging = function is torch.ops.aten.copy_.default and len(ours) == 1
        if is_staging and isinstance(given[1], StreamTensor):
            given[1].memory.check("a copy to the host", is_written=False)
            _over.update(this_stream().seen)
        number = next(_numbers)
        if not function.is_view and not is_staging:
            written = [named["out"]] if "out" in named else [given[0]] if function._schema.name.endswith("_") else []
            changed = {id(tensor.memory) for tensor in written}
            for memory in {id(tensor.memory): tensor.memory for tensor in ours}.values():
                memory.check(function, is_written=id(memory) in changed)
                (memory.writes if id(memory) in changed else memory.reads).add(number)
            this_stream().seen.add(number)
        if function._schema.name.endswith("_") or "out" in named:
            return named.get("out", given[0])
        made = pytree.tree_map_only(
            Tensor, lambda host: StreamTensor(host, of_storage.get(host.untyped_storage().data_ptr())), result
        )
        if not function.is_view:
            for tensor in pytree.tree_leaves(made):
                if isinstance(tensor, StreamTensor):
                    tensor.memory.writes.add(number)
        return made


class StreamFuture:
    """torch.futures.Future by what its documentation says of streams; without devices it knows nothing of them."""

    def __init__(self, *, devices: Any = ()) -> None:
        self.devices = list(devices)
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._result: Any = None
        self._error: BaseException | None = None
        self._seen: set[int] = set()

    def __class_getitem__(cls, item: object) -> type[StreamFuture]:
        return cls

    def set_result(self, result: Any) -> None:
        tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, StreamTensor)]
        if self.devices and tensors:
            self._seen = set(this_stream().seen)
        self._result = result
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def _join(self) -> None:
        if not self.devices:
            return
        this_stream().seen |= self._seen
        for leaf in pytree.tree_leaves(self._result):
            if isinstance(leaf, StreamTensor):
                leaf.memory.recorded.append(this_stream())

    def then(self, callback: Callable[[StreamFuture], Any]) -> StreamFuture:
        child = StreamFuture(devices=self.devices)

        def run() -> None:
            with (Stream() if self.devices else this_stream()).current():
                self._join()
                try:
                    result = callback(self)
                except BaseException as error:
                    child._error = error
                    child._end()
                else:
                    child.set_result(result)

        with self._lock:
            if not self._ended.is_set():
                self._callbacks.append(run)
                return child
        run()
        return child

    def value(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result

    def wait(self) -> Any:
        self._ended.wait()
        self._join()
        return self.value()


def install() -> None:
    """In this process, for good."""
    from tests.collectives.backend.test_staging import fake_device

    fake_device()
    staging._pins = lambda device_type: device_type == "fake"  # type: ignore[assignment]
    staging._page_locked = lambda shape, dtype: torch.empty(shape, dtype=dtype)
    staging._wait_for_copy = lambda event, source: None  # the copy is done
    torch.futures.Future = StreamFuture  # type: ignore[misc, assignment]
