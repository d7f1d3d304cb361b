"""Ray, and nothing but Ray: the cluster, the actors that sit next to the workers, and the way back for their events.

    with Cluster(job) as cluster:               # a Ray of its own on this machine, or a running one by address
        worker_group = cluster.hire(seats)              # a placement group with one bundle, and an actor, for each rank
        worker_group.start(orders)
        worker_group.wait(timeout_s=0.2)                # events, as they come

Each actor always has one `next_events` call open. It comes back when something happens, and it fails as soon as the
actor or its node is gone, so events and deaths arrive by the same way and nothing is polled.

Only this file, `ray_metrics.py`, and `jobs.py`, which reaches a cluster from outside, import ray.
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
# And by the nodes that it starts: left to itself, Ray starts its workers, and through them ours, at nice 15.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from collectives.version import __version__
from launcher.config.job import Job
from launcher.errors import ClusterError
from launcher.inventory.measure import TIMEOUT_S as LOOK_S
from launcher.inventory.measure import look
from launcher.inventory.reachability import check_listening
from launcher.record.events import Event, Lost
from launcher.record.seats import Node, RankPlacement
from launcher.run.agent import Agent, WorkerSpec

ROOM_TIMEOUT_S = 60.0
"""How long to wait until a cluster gives the CPUs that it has."""
LOOK_TIMEOUT_S = LOOK_S + 30.0
EVENTS_TIMEOUT_S = 60.0
SLOW_S = 3.0
"""An engine that was compiled before is loaded in less."""
_OBJECT_STORE_BYTES = 80 * 1024**2
"""Next to the smallest that Ray takes: nothing but events goes through it."""


class Cluster:
    """A connection to Ray for one run. A cluster of our own ends with it; one by address is left as it was found."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker_group: WorkerGroup | None = None
        self._session: str | None = None

    @property
    def own(self) -> bool:
        """Whether this Ray was started for this run, on this machine."""
        return self._job.cluster.address is None

    def __enter__(self) -> Cluster:
        """Start Ray or reach it.

        Raises:
            ClusterError: that was not possible.
        """
        workers, address = self._job.workers, str(self._job.cluster.address)
        try:
            if self.own:
                started: Any = ray.init(
                    address="local",
                    num_cpus=workers.count * workers.cpus,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
                self._session = started.address_info["session_dir"]
            else:
                if ":" in address:  # not "auto", which Ray resolves
                    check_listening(address)
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except Exception as error:  # ray raises this very class when its processes don't come up in time
            ray.shutdown()
            what = "start a local Ray" if self.own else f"reach the Ray cluster at {address!r}"
            advice = "see /tmp/ray/session_latest/logs" if self.own else "start it there by `ray start --head`"
            raise ClusterError(f"cannot {what}: {error}; {advice}") from error
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._worker_group is not None:
                self._worker_group.dismiss()
        finally:
            ray.shutdown()
        if self._session is not None and not isinstance(error, ClusterError):
            shutil.rmtree(self._session, ignore_errors=True)  # the logs of Ray's own processes

    def nodes(self) -> list[Node]:
        """The nodes that are alive and have CPUs to give."""
        return [
            Node(
                id=found["NodeID"],
                name=found["NodeManagerHostname"],
                address="127.0.0.1" if self.own else found["NodeManagerAddress"],
                cpus=int(found["Resources"]["CPU"]),
                memory_bytes=int(found["Resources"].get("memory", 1)),
                accelerator=next((name for name in ("GPU", "NPU") if found["Resources"].get(name)), None),
            )
            for found in ray.nodes()  # type: ignore[no-untyped-call]
            if found["Alive"] and found["Resources"].get("CPU", 0) >= 1
        ]

    def look(self, worker_cpus: int, measure: bool) -> list[str]:
        """What each node has, as `launcher.inventory.measure` tells it in JSON, looked at by all of them at once.

        Raises:
            ClusterError: a node could not be looked at.
        """
        task = ray.remote(look)
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
        except RayError as error:  # a node that went away, or no answer in time
            raise ClusterError(f"not every node could be looked at: {error}") from error

    def hire(self, seats: Sequence[RankPlacement]) -> WorkerGroup:
        """Reserve a bundle for each seat, on its node, and put an agent there.

        Raises:
            ClusterError: the CPUs were not free in time.
        """
        self._worker_group = WorkerGroup(seats, self._job.workers.cpus, self._job.workers.per == "gpu")
        self._worker_group.hire()
        return self._worker_group


class WorkerGroup:
    """The agents of one run, one for each rank."""

    def __init__(self, seats: Sequence[RankPlacement], cpus: int, accelerated: bool = False) -> None:
        self._seats = seats
        self._cpus = cpus
        self._accelerated = accelerated
        self._room: Any = None
        self._agents: list[Any] = []
        self._open: dict[Any, int] = {}

    def hire(self) -> None:
        bare = next((seat.node for seat in self._seats if self._accelerated and not seat.node.accelerator), None)
        if bare is not None:
            raise ClusterError(
                f"workers.per is gpu, and {bare.name} ({bare.address}) has no accelerator that Ray knows of; see "
                "`launcher inventory`, or set workers.per to cpu"
            )
        self._room = placement_group(
            [{"CPU": self._cpus, **self._accelerator(seat)} for seat in self._seats],
            strategy="PACK",
            bundle_label_selector=[{"ray.io/node-id": seat.node.id} for seat in self._seats],
        )
        if not self._room.wait(ROOM_TIMEOUT_S):
            wanted = ", ".join(sorted({f"{seat.node.name} ({seat.node.address})" for seat in self._seats}))
            raise ClusterError(
                f"waited {ROOM_TIMEOUT_S:g} s for {len(self._seats)} bundles of {self._cpus} CPU(s) on {wanted}: "
                "other jobs hold them; see `ray status` there, or lower workers.count"
            )
        actor = ray.remote(Agent)
        self._agents = [
            actor.options(
                num_cpus=self._cpus,
                num_gpus=self._accelerator(seat).get("GPU", 0),
                resources={name: count for name, count in self._accelerator(seat).items() if name != "GPU"},
                max_concurrency=4,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._room, placement_group_bundle_index=seat.rank
                ),
            ).remote()
            for seat in self._seats
        ]

    def _accelerator(self, seat: RankPlacement) -> dict[str, int]:
        return {seat.node.accelerator: 1} if self._accelerated and seat.node.accelerator else {}

    def devices(self) -> list[dict[str, str]]:
        """For each rank the variables that show it the accelerators of all ranks of its node, as under torchrun: the
        local rank counts them."""
        if not self._accelerated:
            return [{} for _ in self._seats]
        own = self._all([agent.devices.remote() for agent in self._agents])
        shown = []
        for seat in self._seats:
            mates = [devices for mate, devices in zip(self._seats, own, strict=True) if mate.node.id == seat.node.id]
            shown.append({name: ",".join(mate[name] for mate in mates if name in mate) for name in own[seat.rank]})
        return shown

    def check_versions(self) -> None:
        """See that every node has the narrowgauge that this process has.

        Raises:
            ClusterError: one hasn't.
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
        """Compile the engine once on each node. Calls `if_slow` if it isn't there after some seconds."""
        first = {seat.node.id: seat.rank for seat in reversed(self._seats)}
        calls = [self._agents[rank].warm_up.remote() for rank in first.values()]
        _, compiling = ray.wait(calls, num_returns=len(calls), timeout=SLOW_S)
        if compiling:
            if_slow()
        self._all(calls)

    def start(self, orders: Sequence[WorkerSpec]) -> None:
        """Start every worker."""
        self._all([agent.start.remote(order) for agent, order in zip(self._agents, orders, strict=True)])
        for rank in range(len(self._agents)):
            self._ask(rank)

    def wait(self, timeout_s: float) -> list[Event]:
        """Events of any rank, as soon as there are some; none if `timeout_s` seconds pass first."""
        ready, _ = ray.wait(list(self._open), num_returns=1, timeout=timeout_s)
        return [event for call in ready for event in self._answer(call)]

    def stop(self, ranks: Sequence[int], force: bool) -> None:
        """Have these workers get SIGTERM, or SIGKILL if forced."""
        for rank in ranks:
            self._agents[rank].stop.remote(force)

    def dismiss(self) -> None:
        """End the agents, and with them any worker that is left, and give the room back."""
        for agent in self._agents:
            with suppress(RayActorError):
                ray.kill(agent)
        if self._room is not None:
            remove_placement_group(self._room)
        self._agents, self._room = [], None

    def _ask(self, rank: int) -> None:
        self._open[self._agents[rank].next_events.remote(EVENTS_TIMEOUT_S)] = rank

    def _answer(self, call: Any) -> list[Event]:
        rank = self._open.pop(call)
        try:
            events: list[Event] = ray.get(call)
        except RayActorError as error:
            seat = self._seats[rank]
            first_line = str(error).strip().splitlines()[0]
            return [
                Lost(rank, time.time(), f"its agent on {seat.node.name} ({seat.node.address}) is gone: {first_line}")
            ]
        self._ask(rank)
        return events

    def _all(self, calls: list[Any]) -> list[Any]:
        """Results of calls to agents during the start, when nothing is there yet that could explain a failure."""
        try:
            return list(ray.get(calls))
        except RayTaskError as error:
            raise ClusterError(str(error.cause)) from error
        except (RayActorError, GetTimeoutError) as error:
            if "No module named 'launcher" in str(error) or "No module named 'collectives" in str(error):
                raise ClusterError(
                    "a node has no narrowgauge, so no worker can be started there: install version "
                    f"{__version__} in the environment that Ray runs in, on every node; "
                    + ", ".join(sorted({f"{seat.node.name} ({seat.node.address})" for seat in self._seats}))
                ) from error
            raise ClusterError(f"an agent could not start: {error}") from error
