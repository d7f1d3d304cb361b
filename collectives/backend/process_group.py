"""The group that torch sees: c10d's calls in, Calls out to an executor, Works back.

    dist.all_reduce(t)                                    torch
      -> NarrowgaugeGroup.allreduce                       this file: c10d's names, options and overloads
        -> tensors.all_reduce(t, "sum") -> Call           what is meant, in plain memory
          -> EngineExecutor | GlooExecutor                how it is done
            -> NarrowgaugeWork                            when it is done

A synchronous call runs in the caller's thread and has ended when the method returns. DDP always calls asynchronously.

Ops of a group must start in the same order on all ranks: the executor matches them by their position. An executor
starts ops in the order in which `run` and `start` are called, so this file only has to keep that order where a call
cannot start at once. That is the case for tensors on a device, which first have to be copied to the host: such calls go
through the staging thread, one at a time, and from the first of them on all calls of the group do.

torch renamed the single-tensor forms between 2.9 and 2.13; both names are here.

Messages between two ranks (send, recv) go beside the ops, see `messages.py`.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from collectives import options
from collectives.backend import boxed_ops, builtin_hooks, profiled, tensors
from collectives.backend.arguments import check_root_tensor, only, only_list, reduction_of
from collectives.backend.c10d import Store, Work, all_reduce_options, c10d, dist
from collectives.backend.executors import EngineExecutor, choose, close_unattended
from collectives.backend.messages import EngineMessages, GlooMessages, Messages
from collectives.backend.meter import METER
from collectives.backend.overloads import overloaded
from collectives.backend.sparse import SparseAllReduce
from collectives.backend.tensors import Call
from collectives.backend.untraced import untraced
from collectives.backend.work import NarrowgaugeWork, finished, hand_over
from collectives.engine.hangs.call_site import call_site
from collectives.errors import GroupClosed, RendezvousError, UsageError
from collectives.options import BACKEND, Options
from collectives.transport.control import Ending
from collectives.transport.rendezvous import announce
from collectives.transport.watched_store import Endings

if TYPE_CHECKING:
    from collectives.engine.runner import Engine
    from collectives.planning.plan import Plan
    from collectives.schedule.op import Collective

CHUNK_BYTES = 4 << 20  # crosses a PCIe bus in less than a millisecond, so the network waits no longer for the first
MAX_HELPERS = 1000  # a thread is started only when none is idle; one or two are usual


def create(
    torch_options: Any, pg_options: object = None, make: Callable[..., NarrowgaugeGroup] | None = None
) -> NarrowgaugeGroup:
    """Make a group of backend "narrowgauge"; torch calls this, by way of `by_device.py`.

    Args:
        torch_options: torch's _DistributedBackendOptions.
        pg_options: the script's pg_options: `collectives.Options`, or None for the options in force.
        make: the class of the group if it is not `NarrowgaugeGroup`.

    Raises:
        UsageError: pg_options are of another backend.
        RendezvousError: the ranks did not find each other.
    """
    rank, size, name = torch_options.group_rank, torch_options.group_size, str(torch_options.group_id)
    timeout_s, store = torch_options.timeout.total_seconds(), _unused(torch_options.store, rank, size, name)
    try:
        settings = _settings(pg_options)
    except UsageError as error:
        announce(store, rank, size, name, options.current_token(), timeout_s, error)
        raise
    builtin_hooks.serve(NarrowgaugeGroup)
    parent = _endings_in_default_group(list(torch_options.global_ranks_in_group))
    return (make or NarrowgaugeGroup)(store, rank, size, name, timeout_s, settings, parent)


def _unused(store: Store, rank: int, size: int, name: str) -> Store:
    """The part of a store for this group: its keys must not be those of an earlier one.

    torchrun's store outlives the groups, and torch gives the first group after `destroy_process_group` the name and
    prefix of the first group before it. So the store counts for each rank how many groups of this name it has come to.
    That also holds for a rank whose process was started anew, and for one that tries again after a group could not
    form.

    Raises:
        RendezvousError: the store does not answer.
    """
    try:
        number = store.add(f"came/{rank}", 1)
    except RuntimeError as error:
        raise RendezvousError(
            f"rank {rank} of {size}, forming group {name}: the store does not answer: {error}"
        ) from None
    return dist.PrefixStore(f"{number}", store)


def _settings(pg_options: object) -> Options:
    if pg_options is None:
        return options.current()
    if not isinstance(pg_options, Options):
        raise UsageError(f"pg_options is a {type(pg_options).__name__}; backend narrowgauge takes collectives.Options")
    return pg_options


def _endings_in_default_group(members: Sequence[int]) -> Endings | None:
    """Which of these ranks of the default group have left it, by their positions here; None if there is none yet."""
    parent = dist.GroupMember.WORLD
    if not members or not isinstance(parent, NarrowgaugeGroup):
        return None
    return parent.endings_among(members)


@untraced
class NarrowgaugeGroup(dist.ProcessGroup):  # type: ignore[misc]
    """A process group whose collectives run on the native engine, or on Gloo where that was chosen.

    Args:
        store: for rendezvous; used by this group alone.
        rank, size: of this process in the group.
        name: of the group, equal on all ranks.
        timeout_s: seconds to wait for the other ranks to come, and without progress after which an op fails, unless the
            options or the op say otherwise.
        settings: options of the group.
        parent: which of its ranks have left the group that it is a part of.

    Attributes:
        accelerators: for each rank the kind of its accelerator, such as "cuda"; None if it has none.
    """

    supports_splitting = True
    supports_coalescing = False
    supports_time_estimate = False
    supports_shrinking = False
    # From 2.14 on, some only in 2.15. torch's own answers ask a backend in C++, which this group has not.
    supports_reconfigure = False
    supports_window = False
    supports_completion_hooks = False
    supports_abort_hooks = False

    def __init__(
        self, store: Store, rank: int, size: int, name: str, timeout_s: float, settings: Options,
        parent: Endings | None = None,
    ) -> None:  # fmt: skip
        super().__init__(rank, size)
        self._rank, self._size, self._name = rank, size, name
        self._store = store
        self._timeout_s, self._given_timeout_s = settings.timeout_s or timeout_s, timeout_s
        self._settings = settings
        self._shown_as: Mapping[str, str] = {"cpu": BACKEND}  # see `show_as`
        self._ops = 0
        self._helper_threads: set[int] = set()  # by identifier
        self._helpers = ThreadPoolExecutor(
            MAX_HELPERS, f"narrowgauge-{name}-futures", _note_this_thread, (self._helper_threads,)
        )
        self._staging_thread: ThreadPoolExecutor | None = None  # started by the first call that waits for a device
        self._executor, on_gloo, self.accelerators = choose(store, rank, size, name, timeout_s, settings, parent)
        self._devices = any(self.accelerators)
        self._is_open = True
        self._messages: Messages
        if self.engine is not None:
            self._messages = EngineMessages(self.engine.messages, self._helpers)
        else:
            self._messages = GlooMessages(on_gloo)
        self._unattended = weakref.finalize(self, close_unattended, self._executor, self._messages, name)
        self._unattended.atexit = False  # the engine says goodbye by itself then, see `lifetime.py`
        boxed_ops.serve(self)

    # Collectives

    @overloaded(c10d.AllreduceOptions, ["tensors/tensor"], ["op", "timeout"])
    def allreduce(self, given: Tensor | list[Tensor], opts: Any) -> NarrowgaugeWork:
        tensor = only("all_reduce", given, "allreduce_coalesced")
        if tensor.is_sparse:
            return self._all_reduce_sparse(tensor, opts)
        return self._submit(self._all_reduce(tensor, reduction_of(opts)), opts, "all_reduce", tensor)

    def all_reduce_coded(
        self, given: Tensor, op: str, codec: str, residual: Tensor | None = None, async_op: bool = True
    ) -> NarrowgaugeWork:
        """All-reduce a float32 tensor in place, encoded where it crosses the network; see `collectives.all_reduce`.

        Raises:
            UsageError: no such codec, or not one for this op; or the group runs on Gloo, which has no codecs.
        """
        if codec != "none" and self.engine is None:
            raise UsageError(f"group {self._name} runs on Gloo, which has no codecs; got codec {codec!r}")
        call = tensors.all_reduce_coded(given, op, codec, residual)
        return self._submit([call], all_reduce_options(async_op=async_op), "all_reduce", given)

    @overloaded(c10d.AllreduceCoalescedOptions, ["tensors"])
    def allreduce_coalesced(self, given: list[Tensor], opts: Any) -> NarrowgaugeWork:
        reduction = reduction_of(opts)
        calls = (
            self._all_reduce(given[0], reduction) if len(given) == 1 else tensors.all_reduce_coalesced(given, reduction)
        )
        return self._submit(calls, opts, "all_reduce", given)

    def _all_reduce(self, given: Tensor, reduction: str) -> list[Call]:
        # If any rank has an accelerator, all ranks cut alike: an op on one rank must be the same op on every other.
        if self._devices:
            return tensors.all_reduce_in_chunks(given, reduction, CHUNK_BYTES)
        return [tensors.all_reduce(given, reduction)]

    def _all_reduce_sparse(self, given: Tensor, opts: Any) -> NarrowgaugeWork:
        op = SparseAllReduce(given, reduction_of(opts), self._rank, self._size)
        at_once = all_reduce_options(async_op=False, timeout=opts.timeout)
        self._submit([op.sizes()], at_once, "all_reduce", [])
        return self._submit([op.rows()], opts, "all_reduce", given)

    @overloaded(c10d.ReduceOptions, ["tensors/tensor"], ["root", "op", "timeout"])
    def reduce(self, given: Tensor | list[Tensor], opts: Any) -> NarrowgaugeWork:
        check_root_tensor("reduce", opts.rootTensor)
        call = tensors.reduce(only("reduce", given), reduction_of(opts), opts.rootRank, self._rank)
        return self._submit([call], opts, "reduce", given)

    @overloaded(c10d.BroadcastOptions, ["tensors/tensor"], ["root", "timeout"])
    def broadcast(self, given: Tensor | list[Tensor], opts: Any) -> NarrowgaugeWork:
        check_root_tensor("broadcast", opts.rootTensor)
        call = tensors.broadcast(only("broadcast", given), opts.rootRank, self._rank)
        return self._submit([call], opts, "broadcast", given)

    @overloaded(c10d.AllgatherOptions, ["output_tensors", "input_tensors/input_tensor"], ["timeout"])
    def allgather(self, outputs: list[Any], given: Tensor | list[Tensor], opts: Any) -> NarrowgaugeWork:
        tensor = only("all_gather", given, "allgather_coalesced")
        outs = outputs if isinstance(given, Tensor) else only("all_gather", outputs)
        call = tensors.all_gather(outs, tensor, self._rank, self._size)
        return self._submit([call], opts, "all_gather", given)

    @overloaded(c10d.AllgatherOptions, ["output_lists", "input_list"])
    def allgather_coalesced(self, outputs: list[list[Tensor]], given: list[Tensor], opts: Any) -> NarrowgaugeWork:
        """``outputs[i][j]`` gets rank i's ``given[j]``: the rank is the first index here, the second in `allgather`."""
        if len(outputs) != self._size or any(len(of_rank) != len(given) for of_rank in outputs):
            got = f"{len(outputs)} lists of {', '.join(str(len(of_rank)) for of_rank in outputs)} outputs"
            raise UsageError(f"all_gather_coalesced: got {got}; wanted {self._size} lists of {len(given)}")
        pairs = zip(zip(*outputs, strict=True), given, strict=True)
        calls = [tensors.all_gather(outs, each, self._rank, self._size) for outs, each in pairs]
        return self._submit(calls, opts, "all_gather", given)

    @overloaded(c10d.AllgatherOptions, ["output", "input"])
    def all_gather_single(self, output: Tensor, given: Tensor, opts: Any) -> NarrowgaugeWork:
        return self.all_gather_single_coalesced([output], [given], opts)

    _allgather_base = all_gather_single

    @overloaded(c10d.AllgatherOptions, ["outputs", "inputs"])
    def all_gather_single_coalesced(self, outputs: list[Tensor], given: list[Tensor], opts: Any) -> NarrowgaugeWork:
        pairs = zip(outputs, given, strict=True)
        calls = [tensors.all_gather_single(out, each, self._rank, self._size) for out, each in pairs]
        return self._submit(calls, opts, "all_gather", given)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    @overloaded(c10d.ReduceScatterOptions, ["output_tensors/output", "input_tensors/input"], ["op", "timeout"])
    def reduce_scatter(self, outputs: Any, given: list[Any], opts: Any) -> NarrowgaugeWork:
        output = only("reduce_scatter", outputs, "reduce_scatter_tensor_coalesced")
        ins = given if isinstance(outputs, Tensor) else only("reduce_scatter", given)
        call = tensors.reduce_scatter(output, ins, reduction_of(opts), self._rank, self._size)
        return self._submit([call], opts, "reduce_scatter", given)

    @overloaded(c10d.ReduceScatterOptions, ["outputTensor", "inputTensor"])
    def reduce_scatter_single(self, output: Tensor, given: Tensor, opts: Any) -> NarrowgaugeWork:
        return self.reduce_scatter_single_coalesced([output], [given], opts)

    _reduce_scatter_base = reduce_scatter_single

    @overloaded(c10d.ReduceScatterOptions, ["outputs", "inputs"])
    def reduce_scatter_single_coalesced(self, outputs: list[Tensor], given: list[Tensor], opts: Any) -> NarrowgaugeWork:
        pairs = zip(outputs, given, strict=True)
        calls = [
            tensors.reduce_scatter_single(out, each, reduction_of(opts), self._rank, self._size) for out, each in pairs
        ]
        return self._submit(calls, opts, "reduce_scatter", given)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    @overloaded(c10d.AllToAllOptions, ["output_tensors", "input_tensors"])
    def alltoall(self, outputs: list[Tensor], given: list[Tensor], opts: Any) -> NarrowgaugeWork:
        return self._submit([tensors.all_to_all(outputs, given, self._size)], opts, "all_to_all", given)

    @overloaded(c10d.AllToAllOptions, ["output", "input", "output_split_sizes", "input_split_sizes"], ["timeout"])
    def all_to_all_single(
        self, output: Tensor, given: Tensor, output_splits: list[int], input_splits: list[int], opts: Any
    ) -> NarrowgaugeWork:
        call = tensors.all_to_all_single(output, given, output_splits, input_splits, self._size)
        return self._submit([call], opts, "all_to_all", given)

    alltoall_base = all_to_all_single

    @overloaded(c10d.GatherOptions, ["output_tensors", "input_tensors/input_tensor"], ["root", "timeout"])
    def gather(self, outputs: list[Any], given: Any, opts: Any) -> NarrowgaugeWork:
        tensor, outs = only("gather", given), only_list("gather", outputs)
        call = tensors.gather(outs, tensor, opts.rootRank, self._rank, self._size)
        return self._submit([call], opts, "gather", given)

    @overloaded(c10d.GatherOptions, ["output", "input"])
    def gather_single(self, output: Tensor, given: Tensor, opts: Any) -> NarrowgaugeWork:
        call = tensors.gather_single(output, given, opts.rootRank, self._rank, self._size)
        return self._submit([call], opts, "gather", given)

    gather_into_tensor = gather_single

    @overloaded(c10d.ScatterOptions, ["output_tensors/output_tensor", "input_tensors"], ["root", "timeout"])
    def scatter(self, outputs: Any, given: list[Any], opts: Any) -> NarrowgaugeWork:
        output, ins = only("scatter", outputs), only_list("scatter", given)
        call = tensors.scatter(output, ins, opts.rootRank, self._rank, self._size)
        return self._submit([call], opts, "scatter", given)

    @overloaded(c10d.BarrierOptions, [], ["timeout"])
    def barrier(self, opts: Any) -> NarrowgaugeWork:
        return self._submit([tensors.barrier()], opts, "barrier", [])

    def _submit(self, calls: list[Call], opts: Any, op: str, given: Any) -> NarrowgaugeWork:
        """Start the calls, and await them unless the options say otherwise. `op` and `given` are for a profiler."""
        self._check_open()
        if not calls:
            raise UsageError(f"{op}: got an empty list of tensors; wanted at least one, as on the other ranks")
        timeout_s = opts.timeout.total_seconds()
        if timeout_s <= 0:  # torch's default stands for "not given"
            timeout_s = self._timeout_s
        self._ops += 1
        # Once the staging thread exists it may still hold calls that have not started. A call that started at once,
        # although its tensor is plain, would overtake them, and other ranks would not see the same order.
        is_staged = self._devices and (
            self._staging_thread is not None or any(call.ready is not None for call in calls)
        )
        event = None
        if profiled.is_active():
            event = self._event(op, given, [output for call in calls for output in call.outputs])
        if not opts.asyncOp and not is_staged and event is None:
            return self._run(calls, timeout_s)
        work = self._start(calls, timeout_s, is_staged, event)
        if not opts.asyncOp:
            work.wait()
        return work

    def _run(self, calls: list[Call], timeout_s: float) -> NarrowgaugeWork:
        """Execute the calls in the caller's thread, which saves two thread switches for each."""
        for call in calls:
            METER.call_started(call.num_bytes)
            try:
                self._executor.run(call, timeout_s)
            finally:
                METER.call_ended()
            if call.finish is not None:
                call.finish()
        return finished([output for call in calls for output in call.outputs])

    def _event(self, op: str, given: Any, outputs: list[Tensor]) -> profiled.OpEvent | None:
        """The op in the profiler, if that is active. Gloo leaves events of its own."""
        if not profiled.is_active() or self.engine is None:
            return None
        details: dict[str, int | str] = {
            "Out msg nelems": sum(output.numel() for output in outputs),
            "Group size": self._size,
            "Rank": self._rank,
            "Process Group Name": self._name,
            "Process Group Description": self.group_desc,
        }
        shown_as = self._shown_as.get("cpu") or next(iter(self._shown_as.values()))
        return profiled.OpEvent(shown_as, op, given, details)

    def _start(
        self, calls: list[Call], timeout_s: float, is_staged: bool, event: profiled.OpEvent | None
    ) -> NarrowgaugeWork:
        work = NarrowgaugeWork(calls, f"group {self._name}", self._helpers, self)
        work.event = event
        for call in calls:
            METER.op_started(call.num_bytes)
            try:
                if is_staged:
                    self._stage(call, work, timeout_s)
                else:
                    self._executor.start(call, functools.partial(work.part_done, call), timeout_s)
            except BaseException:
                METER.op_ended()
                if event is not None:
                    event.end()
                raise
        return work

    def _stage(self, call: Call, work: NarrowgaugeWork, timeout_s: float) -> None:
        """Have the staging thread start the call when its elements have left the device; returns at once.

        One thread, so that calls start in the order in which they were made, whichever copy is done first.
        """
        call.caller = call_site()
        self._staging_thread = self._staging_thread or ThreadPoolExecutor(1, f"narrowgauge-{self._name}-staging")
        self._staging_thread.submit(self._start_when_ready, call, work, timeout_s)

    def _start_when_ready(self, call: Call, work: NarrowgaugeWork, timeout_s: float) -> None:
        def done(error: BaseException | None) -> None:
            """On a helper: the copy back to the device would keep the executor's thread from its next op."""
            hand_over(self._helpers, work.part_done, call, error)

        try:
            if call.ready is not None:
                call.ready()
            self._executor.start(call, done, timeout_s)
        except BaseException as problem:  # the caller has returned long ago, so only the Work can report it
            done(problem)

    # Messages between two ranks

    def send(self, given: list[Tensor], rank: int, tag: int = 0) -> Work:
        self._check_open()
        return self._messages.send(given, rank, tag, self._timeout_s, self, self._event("send", given, []))

    def recv(self, given: list[Tensor], rank: int, tag: int = 0) -> Work:
        self._check_open()
        event = self._event("recv", given, given)
        return self._messages.receive(given, rank, tag, self._timeout_s, self, event)

    def recv_anysource(self, given: list[Tensor], tag: int = 0) -> Work:
        self._check_open()
        event = self._event("recvAnySource", given, given)
        return self._messages.receive(given, None, tag, self._timeout_s, self, event)

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        self._check_open()
        timeout_s = self._timeout_s if timeout is None else timeout.total_seconds()
        self._messages.monitored_barrier(self._rank, self._size, timeout_s, wait_all_ranks)

    def _check_open(self) -> None:
        if not self._is_open:
            raise GroupClosed(f"rank {self._rank}: group {self._name} was destroyed")

    # Membership

    def split_group(
        self, ranks: Sequence[int], timeout: timedelta | None = None, opts: object = None,
        group_name: str | None = None, group_desc: str | None = None, device_types: object = None,
    ) -> NarrowgaugeGroup | None:  # fmt: skip
        """A group of some of this group's ranks, without a new rendezvous address; None on the others."""
        if self._rank not in ranks:
            return None
        name = group_name or f"{self._name}/{','.join(map(str, ranks))}"
        rank, size = list(ranks).index(self._rank), len(ranks)
        part = self._new_group(
            _unused(dist.PrefixStore(f"split/{name}", self._store), rank, size, name),
            rank,
            size,
            name,
            self._given_timeout_s if timeout is None else timeout.total_seconds(),
            opts if isinstance(opts, Options) else self._settings,
            self.endings_among(ranks),
        )
        if timeout is None:
            part.set_timeout(timedelta(seconds=self._timeout_s))
        part.show_as(self._shown_as)
        part._set_group_desc(group_desc or f"part of {self._name}")
        return part

    def endings_among(self, ranks: Sequence[int]) -> Endings | None:
        """For a group of some of this group's ranks: which of them have left this one, by their positions there.

        A rank that only gave up an op of this one has not: its process lives, and may form other groups.
        """
        engine = self.engine
        if engine is None:
            return None
        position = {rank: index for index, rank in enumerate(ranks)}

        def endings() -> dict[int, Ending]:
            return {position[rank]: ending for rank, ending in engine.departures().items() if rank in position}

        return endings

    def _new_group(self, *arguments: Any) -> NarrowgaugeGroup:
        """Another group of this kind."""
        return NarrowgaugeGroup(*arguments)

    def perform_nocolor_split(self, device: torch.device) -> None:
        """Nothing to do: ranks outside a new group take no part in forming it."""

    def eager_connect_single_device(self, device: torch.device) -> None:
        """Nothing to do: a group is connected when its constructor returns."""

    def shutdown(self) -> None:
        """Leave the group: no thread, socket or shared memory of it remains. Unfinished ops raise GroupClosed.

        In a future's callback it does not wait for the helper thread that runs it, which ends after the callback.

        A group whose last reference goes is left, too; unfinished ops hold it until they have ended.

        Raises:
            GroupClosed: a signal handler called this on top of a synchronous op; see `Engine.close`.
        """
        self._is_open = False
        self._messages.close()
        self._executor.close()  # first: it fails the ops that the two pools below still wait for
        self._unattended.detach()
        if self._staging_thread is not None:
            self._staging_thread.shutdown()  # before the helpers: what it could not start is reported through them
        self._helpers.shutdown(wait=threading.get_ident() not in self._helper_threads)  # else: in a future's callback

    abort = shutdown

    # Attributes

    @property
    def engine(self) -> Engine | None:
        """The native engine; None where Gloo was chosen."""
        return self._executor.engine if isinstance(self._executor, EngineExecutor) else None

    def plan(self, collective: Collective = "all_reduce", num_bytes: int = 25_000_000) -> Plan:
        """The plan in force for a collective with messages of `num_bytes` bytes.

        Raises:
            UsageError: the group runs on Gloo, which has no plan.
        """
        if self.engine is None:
            raise UsageError(f"group {self._name} runs on Gloo; only the native engine follows a plan")
        return self.engine.plan(collective, num_bytes)

    def show_as(self, names: Mapping[str, str]) -> None:
        """Set the backend's name in a profiler's events: by kind of device, as in "cpu:gloo,cuda:nccl"."""
        self._shown_as = names

    def getBackendName(self) -> str:  # noqa: N802  C++ looks the method up by this name
        return "narrowgauge"

    name = _get_backend_name = getBackendName

    def getGroupName(self) -> str:  # noqa: N802
        return self._name

    def setGroupName(self, name: str) -> None:  # noqa: N802
        self._name = name

    _set_group_name = setGroupName
    group_name = property(getGroupName)

    @property
    def options(self) -> Options:
        return self._settings

    @property
    def _device_types(self) -> list[torch.device]:
        """Devices whose tensors are accepted; torch puts pickled objects on the first."""
        accelerator = torch.accelerator.current_accelerator()
        return [torch.device("cpu"), *([torch.device(accelerator.type)] if accelerator is not None else [])]

    def _get_backend(self, device: torch.device) -> NarrowgaugeGroup:
        """One group serves all devices, so it is its own backend."""
        return self

    def supports_tensor_alloc(self, device: torch.device) -> bool:
        return False

    def get_group_store(self) -> Store:
        return self._store

    def set_timeout(self, timeout: timedelta) -> None:
        """Seconds without progress after which ops that are called from now on fail."""
        self._timeout_s = timeout.total_seconds()

    _set_default_timeout = set_timeout

    def _set_sequence_number_for_group(self) -> None:
        """Nothing to do: every group counts its ops from 0."""

    def _get_sequence_number_for_group(self) -> int:
        return self._ops


def native_group(group: object, purpose: str) -> NarrowgaugeGroup:
    """The group (None: the default one), checked to be of backend narrowgauge.

    Args:
        purpose: what the caller needs it for; the error message begins with it.

    Raises:
        UsageError: it is of another backend.
    """
    chosen = dist.group.WORLD if group is None else group
    if not isinstance(chosen, NarrowgaugeGroup):
        raise UsageError(f"{purpose} needs a group of backend {BACKEND}; got a {type(chosen).__name__}")
    return chosen


def _note_this_thread(threads: set[int]) -> None:
    threads.add(threading.get_ident())
