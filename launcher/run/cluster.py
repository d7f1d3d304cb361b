"""Ray, and nothing but Ray: the cluster, the actors beside the workers, and the way back for their events.

    with Cluster(job) as cluster:               # a Ray of its own on this machine, or a running one by address
        worker_group = cluster.hire(seats)      # a placement group with one bundle, and an actor, for each rank
        worker_group.start(specs)
        worker_group.wait(timeout_s=0.2)        # events, as they come

A placement group reserves the CPUs of all ranks at once or none: two jobs on one cluster can't each hold half of what
they need and wait for the other. Each bundle is bound to the node that the plan has chosen.

Ray gets an actor beside each worker, not the worker itself. An actor that runs the user's script could be lost with the
script (a crash, an exit in C), and Ray would know only that it is gone. The agent survives its worker and says how it
ended; Ray in turn says when the agent or its node is lost.

Each actor always has one `next_events` call pending. The call returns when something happens, and it fails as soon as
the actor or its node is gone. So events and losses arrive in the same way, and nothing is polled.

Everything here shares the fate of this process: the actors are owned by this driver and not detached, so Ray kills them
when the launcher is gone, and the kernel then kills the workers (agent.py). A killed launcher leaves nothing running.

Ray is imported here, in `remote/ray_jobs.py`, which reaches a cluster from outside, and in `monitor/prometheus.py`.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

# Read by ray when it is imported: no usage reports, and no CUDA_VISIBLE_DEVICES="" for actors without a GPU of Ray's.
# The last one is read by the nodes that it starts: by default Ray runs its processes, and so our workers, at nice 15.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from collectives.version import __version__
from launcher import bootstrap
from launcher.bootstrap import stand_in
from launcher.config.job import Job
from launcher.errors import ClusterError
from launcher.inventory.measure import TIMEOUT_S as LOOK_S
from launcher.inventory.measure import run_as_process
from launcher.inventory.reachability import check_head
from launcher.record.events import Event, Lost
from launcher.record.seats import Node, RankPlacement
from launcher.run.agent import Agent, WorkerSpec

ray.cloudpickle.register_pickle_by_value(bootstrap)  # type: ignore[no-untyped-call]
ROOM_TIMEOUT_S = 60.0
"""How long to wait until a cluster has reserved the CPUs. Longer means that another job holds them."""
LOOK_TIMEOUT_S = LOOK_S + 30.0
EVENTS_TIMEOUT_S = 60.0
"""After which a pending `next_events` returns empty and is asked again."""
SLOW_S = 3.0
"""A compiled engine is loaded from the cache in less."""
_OBJECT_STORE_BYTES = 80 * 1024**2
"""Close to the smallest that Ray accepts: only events go through it."""


class Cluster:
    """A connection to Ray for one run. A Ray started for the run ends with it; one by address is left running."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker_group: WorkerGroup | None = None
        self._session: str | None = None

    @property
    def own(self) -> bool:
        """Whether this Ray was started for this run, on this machine."""
        return self._job.cluster.address is None

    def __enter__(self) -> Cluster:
        """Start Ray, or connect to it.

        Raises:
            ClusterError: that failed; the message says what to do.
        """
        workers, address = self._job.workers, str(self._job.cluster.address)
        try:
            if self.own:
                started: Any = ray.init(
                    address="local",
                    # What the job asks for, not what the machine has: two ranks run on a laptop with one core, too.
                    num_cpus=workers.count * workers.cpus,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    logging_level=logging.ERROR,
                    log_to_driver=False,  # workers write to logs of their own; Ray would repeat and interleave them
                )
                self._session = started.address_info["session_dir"]
            else:
                if ":" in address:  # not "auto", which Ray resolves
                    check_head(address)
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except Exception as error:  # the class that ray raises when its processes don't start in time
            ray.shutdown()
            what = "start a local Ray" if self.own else f"reach the Ray cluster at {address!r}"
            advice = "see /tmp/ray/session_latest/logs" if self.own else "start it there with `ray start --head`"
            raise ClusterError(f"cannot {what}: {error}; {advice}") from error
        except BaseException:  # a Ctrl-C: no __exit__ follows, and Ray's processes must not stay behind
            ray.shutdown()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._worker_group is not None:
                self._worker_group.dismiss()
        finally:
            ray.shutdown()
        # Logs of Ray's own processes, some MB for each run. A ClusterError refers the user to them.
        if self._session is not None and not isinstance(error, ClusterError):
            shutil.rmtree(self._session, ignore_errors=True)

    def nodes(self) -> list[Node]:
        """The nodes that are alive and have CPUs for workers; a head started with `--num-cpus=0` is not among them."""
        return [
            Node(
                id=found["NodeID"],
                name=found["NodeManagerHostname"],
                # On one machine loopback is always there; its outward address may be firewalled or change with the
                # WLAN.
                address="127.0.0.1" if self.own else found["NodeManagerAddress"],
                cpus=int(found["Resources"]["CPU"]),
                memory_bytes=int(found["Resources"].get("memory", 1)),
                accelerator=next((name for name in ("GPU", "NPU") if found["Resources"].get(name)), None),
            )
            for found in ray.nodes()  # type: ignore[no-untyped-call]
            if found["Alive"] and found["Resources"].get("CPU", 0) >= 1
        ]

    def look(self, worker_cpus: int, measure: bool) -> list[str]:
        """The JSON that `launcher.inventory.measure.run_as_process` returns on each node, all at the same time.

        Raises:
            ClusterError: a node failed, went away, or did not answer in time.
        """
        # Tasks without CPUs: they run beside other jobs, and on nodes that are full.
        task = ray.remote(stand_in(run_as_process))
        calls = [
            task.options(num_cpus=0, label_selector={"ray.io/node-id": node.id}).remote(
                node.address, node.cpus, worker_cpus, measure
            )
            for node in self.nodes()
        ]
        try:
            return list(ray.get(calls, timeout=LOOK_TIMEOUT_S))
        except RayTaskError as error:
            raise ClusterError(str(error.cause)) from error
        except RayError as error:  # a lost node, or no answer in time
            raise ClusterError(f"cannot examine every node: {error}") from error

    def hire(self, seats: Sequence[RankPlacement]) -> WorkerGroup:
        """Reserve a bundle for each rank on its node, and start an agent there.

        Raises:
            ClusterError: the CPUs were not free in time, or a node has no accelerator where the job asks for one.
        """
        self._worker_group = WorkerGroup(seats, self._job.workers.cpus, self._job.workers.per == "gpu")
        self._worker_group.hire()
        return self._worker_group


class WorkerGroup:
    """The agents of one attempt, one for each rank."""

    def __init__(self, seats: Sequence[RankPlacement], cpus: int, accelerated: bool = False) -> None:
        self._seats = seats
        self._cpus = cpus
        self._accelerated = accelerated
        self._placement: Any = None
        self._agents: list[Any] = []
        self._pending: dict[Any, int] = {}
        """The rank of each unanswered `next_events` call."""

    def hire(self) -> None:
        # Ray would wait for such a bundle without end.
        bare = next((seat.node for seat in self._seats if self._accelerated and not seat.node.accelerator), None)
        if bare is not None:
            raise ClusterError(
                f"workers.per is gpu, and {bare.name} ({bare.address}) has no accelerator that Ray knows of; see "
                "`launcher inventory`, or set workers.per to cpu"
            )
        self._placement = placement_group(
            [{"CPU": self._cpus, **self._accelerator(seat)} for seat in self._seats],
            strategy="PACK",  # of no importance, since every bundle names its node
            bundle_label_selector=[{"ray.io/node-id": seat.node.id} for seat in self._seats],
        )
        if not self._placement.wait(ROOM_TIMEOUT_S):
            wanted = ", ".join(sorted({f"{seat.node.name} ({seat.node.address})" for seat in self._seats}))
            raise ClusterError(
                f"waited {ROOM_TIMEOUT_S:g} s for {len(self._seats)} bundles of {self._cpus} CPU(s) on {wanted}: "
                "other jobs hold them; see `ray status` there, or lower workers.count"
            )
        actor = ray.remote(stand_in(Agent))
        self._agents = [
            actor.options(
                num_cpus=self._cpus,
                num_gpus=self._accelerator(seat).get("GPU", 0),
                resources={name: count for name, count in self._accelerator(seat).items() if name != "GPU"},
                max_concurrency=4,  # next_events waits in one thread; stop must get through at the same time
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._placement, placement_group_bundle_index=seat.rank
                ),
            ).remote()
            for seat in self._seats
        ]

    def _accelerator(self, seat: RankPlacement) -> dict[str, int]:
        return {seat.node.accelerator: 1} if self._accelerated and seat.node.accelerator else {}

    def devices(self) -> list[dict[str, str]]:
        """For each rank the variables that name the accelerators of all ranks of its node. Ray gives each actor its own
        one, as device 0; a script for torchrun selects by LOCAL_RANK among all of them."""
        if not self._accelerated:
            return [{} for _ in self._seats]
        # Ranks of a node are listed in the order of their local ranks, so that LOCAL_RANK selects a rank's own device.
        own = self._all([agent.devices.remote() for agent in self._agents])
        shown = []
        for seat in self._seats:
            mates = [devices for mate, devices in zip(self._seats, own, strict=True) if mate.node.id == seat.node.id]
            shown.append({name: ",".join(mate[name] for mate in mates if name in mate) for name in own[seat.rank]})
        return shown

    def check_versions(self) -> None:
        """Check that every node has the version of narrowgauge that this process has.

        Raises:
            ClusterError: a node has another one.
        """
        found = self._all([agent.version.remote() for agent in self._agents])
        for seat, version in zip(self._seats, found, strict=True):
            if version != __version__:
                raise ClusterError(
                    f"{seat.node.name} ({seat.node.address}) has narrowgauge {version}, this node has {__version__}; "
                    "install the same version in the environment that Ray runs in, on every node"
                )

    def free_port(self) -> int:
        """A port on rank 0's node."""
        return int(self._all([self._agents[0].free_port.remote(self._seats[0].node.address)])[0])

    def warm_up(self, if_slow: Callable[[], None]) -> None:
        """Compile the engine once on each node. Calls `if_slow` if that takes longer than `SLOW_S`."""
        # Reversed, so that the lowest rank of each node stays in the dict. Ranks of a node share its cache.
        first = {seat.node.id: seat.rank for seat in reversed(self._seats)}
        calls = [self._agents[rank].warm_up.remote() for rank in first.values()]
        _, compiling = ray.wait(calls, num_returns=len(calls), timeout=SLOW_S)
        if compiling:
            if_slow()
        self._all(calls)

    def start(self, specs: Sequence[WorkerSpec]) -> None:
        """Start every worker."""
        self._all([agent.start.remote(spec) for agent, spec in zip(self._agents, specs, strict=True)])
        # Only now: an agent without a worker has no events, and its failure is better reported by the call above.
        for rank in range(len(self._agents)):
            self._request_events(rank)

    def wait(self, timeout_s: float) -> list[Event]:
        """Events of any rank as soon as there are some; none if `timeout_s` seconds pass first."""
        # One call at a time is enough: it carries all events of its rank so far, and the next wait returns at once.
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=timeout_s)
        return [event for call in ready for event in self._events_of(call)]

    def stop(self, ranks: Sequence[int], force: bool) -> None:
        """Send these workers SIGTERM, or SIGKILL if forced. Does not wait: their ends arrive as events."""
        for rank in ranks:
            self._agents[rank].stop.remote(force)

    def dismiss(self) -> None:
        """End the agents and with them any worker that is left, and give the CPUs back."""
        # Killing an actor ends its process, and with the thread that holds the worker the worker itself (agent.py).
        for agent in self._agents:
            with suppress(RayActorError):
                ray.kill(agent)
        if self._placement is not None:
            remove_placement_group(self._placement)
        self._agents, self._placement = [], None

    def _request_events(self, rank: int) -> None:
        self._pending[self._agents[rank].next_events.remote(EVENTS_TIMEOUT_S)] = rank

    def _events_of(self, call: Any) -> list[Event]:
        rank = self._pending.pop(call)
        try:
            events: list[Event] = ray.get(call)
        except RayActorError as error:
            # Not asked again: a lost agent stays lost, and the worker died with it.
            seat = self._seats[rank]
            first_line = str(error).strip().splitlines()[0]
            return [
                Lost(rank, time.time(), f"its agent on {seat.node.name} ({seat.node.address}) is gone: {first_line}")
            ]
        self._request_events(rank)
        return events

    def _all(self, calls: list[Any]) -> list[Any]:
        """Results of calls to agents before the workers run, when no event explains a failure yet."""
        try:
            return list(ray.get(calls))
        except RayTaskError as error:
            raise ClusterError(str(error.cause)) from error
        except (RayActorError, GetTimeoutError) as error:
            # The stand-in's constructor imports the Agent on the node, which fails where narrowgauge is not installed.
            # Ray has no class of error for that.
            if "No module named 'launcher" in str(error) or "No module named 'collectives" in str(error):
                raise ClusterError(
                    "a node has no narrowgauge, so no worker can be started there: install version "
                    f"{__version__} in the environment that Ray runs in, on every node; "
                    + ", ".join(sorted({f"{seat.node.name} ({seat.node.address})" for seat in self._seats}))
                ) from error
            raise ClusterError(f"an agent could not start: {error}") from error
