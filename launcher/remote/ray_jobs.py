"""Ray's jobs API: by HTTP to the dashboard of a cluster's head, from any machine that reaches it.

This is the second file that imports ray. `cluster.py` is inside the cluster and needs a Ray node on its own machine;
this one is outside and needs none.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read by ray when it is imported

from ray._private import ray_constants, services
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.job_submission import JobSubmissionClient

from launcher.errors import ClusterError
from launcher.inventory.reachability import check_listening

KV_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 40.0
STOP_PATIENCE_S = 20
"""From the SIGTERM that Ray sends to a driver to SIGKILL. The driver needs `supervisor.TERM_S` and a little more."""
RECONNECT_S = 60.0
"""How long a head may be out of reach before following a run is given up."""
METADATA = "narrowgauge"
for _talkative in ("dashboard_sdk", "job.sdk"):  # they tell of uploads and closed connections
    logging.getLogger(f"ray.dashboard.modules.{_talkative}").setLevel(logging.ERROR)
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class ClusterRun:
    """A run that was handed to the cluster. `state` is Ray's: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    id: str
    state: str
    message: str
    started_at: float | None
    told: dict[str, Any]
    """What its submitter said of it, see `remote.py`."""

    @property
    def over(self) -> bool:
        return self.state in _OVER


NO_AGENT_YET, AGENTS_TIMEOUT_S = "No available agent", 40.0


class Jobs:
    """The runs of one cluster."""

    def __init__(self, address: str) -> None:
        """Reach the head.

        Args:
            address: as of a job's `cluster.address`.

        Raises:
            ClusterError: that was not possible.
        """
        self.address = address
        self._gcs = None if "://" in address else _head(address)
        url = _dashboard(self._gcs) if self._gcs else address
        with _told(f"reach the dashboard of the Ray cluster at {address!r}, {url}"):
            check_listening(url.partition("://")[2])
        with _told(f"reach the Ray cluster at {address!r}"), _no_other_address():
            self._client = JobSubmissionClient(url)

    def submit(self, run: str, command: str, archive: Path, env: dict[str, str], told: dict[str, Any]) -> None:
        """Have the head start a command, in the unpacked archive, as the job with that name.

        A cluster that has just been started takes jobs only after some seconds; it gets them.
        """
        env = {**env, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_PATIENCE_S)}
        until = time.monotonic() + AGENTS_TIMEOUT_S
        with _told(f"submit to the Ray cluster at {self.address!r}"):
            while True:
                try:
                    self._client.submit_job(
                        entrypoint=command,
                        submission_id=run,
                        runtime_env={"working_dir": str(archive), "env_vars": env},
                        metadata={METADATA: json.dumps(told)},
                    )
                    return
                except RuntimeError as error:  # the client has no other kind
                    if NO_AGENT_YET not in str(error) or time.monotonic() > until:
                        raise
                time.sleep(1.0)

    def all(self) -> list[ClusterRun]:
        """All runs of ours that the cluster remembers, oldest first."""
        with _told(f"list the jobs of the Ray cluster at {self.address!r}"):
            found = [job for job in self._client.list_jobs() if METADATA in (job.metadata or {})]
        return sorted(map(_found, found), key=lambda run: run.started_at or 0.0)

    def one(self, run: str) -> ClusterRun:
        """What the cluster knows of a run."""
        with _told(f"ask the Ray cluster at {self.address!r} for the run {run}"):
            return _found(self._client.get_job_info(run))

    def stop(self, run: str, *, force: bool = False) -> ClusterRun:
        """Have a run's driver told to stop, and wait until it is over.

        Args:
            force: the workers are killed at once, without the seconds that they get to end by themselves.

        Raises:
            ClusterError: it goes on, or the cluster can't be reached.
        """
        with _told(f"stop the run {run}"):
            if force:
                self._ask_for_force(run)
            self._client.stop_job(run)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not (found := self.one(run)).over:
            if time.monotonic() > deadline:
                raise ClusterError(f"{run} still is {found.state} {STOP_TIMEOUT_S:.0f} s after it was told to stop")
            time.sleep(0.2)
        return found

    def tell_to_stop(self, run: str) -> None:
        """As `stop`, but without waiting."""
        with _told(f"stop the run {run}"):
            self._client.stop_job(run)

    def output(self, run: str) -> str:
        """All that the run's driver has printed so far."""
        with _told(f"read the output of {run}"):
            return str(self._client.get_job_logs(run))

    def follow(self, run: str) -> Iterator[str]:
        """What the run's driver prints, from its beginning to its end, in pieces. A lost connection is made anew.

        Raises:
            ClusterError: the head has been out of reach for `RECONNECT_S`.
        """
        given = 0
        lost_at: float | None = None
        while True:
            skip = given
            try:
                for piece in self._pieces(run):
                    lost_at = None
                    new, skip = piece[skip:], max(skip - len(piece), 0)
                    given += len(new)
                    if new:
                        yield new
                if self.one(run).over:
                    return
            except Exception as error:  # aiohttp's, requests' and Ray's, for one and the same thing
                lost_at = lost_at or time.monotonic()
                if time.monotonic() > lost_at + RECONNECT_S:
                    raise ClusterError(
                        f"the Ray cluster at {self.address!r} has been out of reach for {RECONNECT_S:.0f} s: {error}; "
                        f"the run {run} may go on there"
                    ) from error
            time.sleep(1.0)

    def _ask_for_force(self, run: str) -> None:
        """Ray's jobs know one way to stop; the driver looks here for the other one."""
        if self._gcs is None:
            raise ClusterError(
                f"--force needs the address of the head itself, host:port; got the dashboard's, {self.address}"
            )
        GcsClient(address=self._gcs).internal_kv_put(_key(run), b"1", True, timeout=KV_TIMEOUT_S)

    def _pieces(self, run: str) -> Iterator[str]:
        pieces: Any = self._client.tail_job_logs(run)
        loop = asyncio.new_event_loop()
        try:
            while True:
                try:
                    yield loop.run_until_complete(pieces.__anext__())
                except StopAsyncIteration:
                    return
        finally:
            with suppress(Exception):
                loop.run_until_complete(pieces.aclose())
            loop.close()


def force_is_wanted(run: str) -> bool:
    """In a driver: whether who stops this run wants that by force. Forgets it, so that nothing stays."""
    client = GcsClient(address=os.environ["RAY_ADDRESS"])
    wanted = client.internal_kv_get(_key(run), timeout=KV_TIMEOUT_S) is not None
    if wanted:
        client.internal_kv_del(_key(run), False, timeout=KV_TIMEOUT_S)
    return wanted


def _key(run: str) -> bytes:
    return f"narrowgauge:force:{run}".encode()


def _found(job: Any) -> ClusterRun:
    told: dict[str, Any] = json.loads(job.metadata[METADATA])
    started_at = job.start_time / 1000 if job.start_time else None
    return ClusterRun(job.submission_id, str(job.status.value), job.message or "", started_at, told)


def _head(address: str) -> str:
    """host:port of a cluster's head, which "auto" leaves to be found."""
    if address == "auto":
        with _told("find a Ray cluster for the address 'auto'", "give its host:port, or set RAY_ADDRESS to that"):
            address = services.canonicalize_bootstrap_address_or_die("auto")
    return address


def _dashboard(address: str) -> str:
    """The URL of the dashboard of a cluster whose head listens at host:port.

    Raises:
        ClusterError: nobody listens there, or there is no dashboard, or it can't be reached from here.
    """
    with _told(f"reach the Ray cluster at {address!r}"):
        check_listening(address)
    host = address.rpartition(":")[0].strip("[]")
    with _told(f"ask the Ray cluster at {address!r} for its dashboard"):
        known = GcsClient(address=address).internal_kv_get(
            ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD, timeout=KV_TIMEOUT_S
        )
    advice = f"start the head with `ray start --head --include-dashboard=true --dashboard-host={host}`"
    if not known:
        raise ClusterError(
            f"the Ray cluster at {address!r} has no dashboard, and jobs are handed to a cluster through it; {advice}"
        )
    there = known.decode()
    if _is_loopback(there.rpartition(":")[0]) and not _is_here(host):
        raise ClusterError(
            f"the dashboard of the Ray cluster at {address!r} listens on {there}, for its own machine alone; {advice}"
        )
    return f"http://{there}"


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


def _is_here(host: str) -> bool:
    with suppress(OSError):
        host = socket.gethostbyname(host)
    return any(host == found.address for addresses in psutil.net_if_addrs().values() for found in addresses)


@contextmanager
def _told(what: str, advice: str = "start it there by `ray start --head`") -> Iterator[None]:
    """Whatever goes wrong inside, in one message."""
    try:
        yield
    except ClusterError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ClusterError(f"cannot {what}: {reason}; {advice}") from error


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Ray prefers these variables to the address that it is given."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
