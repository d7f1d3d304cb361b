"""Ray's jobs API: by HTTP to the dashboard of a cluster's head, from any machine that reaches it.

`run/cluster.py` is inside the cluster and needs a Ray node on its own machine; this file is outside and needs none.

A job of ours is known by its metadata, where `client.py` puts the job file and all that the driver needs. Ray stores it
with the job, so that any observer can read what runs there.

Stopping: Ray sends SIGTERM to a driver and SIGKILL some seconds later, three by default. The driver takes SIGTERM as a
Ctrl-C: it ends its workers in order and writes the summary. That takes longer, so a job is submitted with more
patience. Ray has no second kind of stop. For `--force` a key in the head's key-value store says what the SIGTERM means.
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
from launcher.inventory.reachability import check_head, check_listening

KV_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 40.0
STOP_PATIENCE_S = 20
"""From the SIGTERM that Ray sends to a driver to SIGKILL. The driver needs `supervisor.TERM_S` for its workers, and
some seconds for the summary and the report."""
RECONNECT_S = 60.0
"""How long the head may be out of reach before `follow` fails."""
METADATA = "narrowgauge"
"""The key of a job's metadata that holds ours, as JSON: Ray takes strings only."""
for _name in ("dashboard_sdk", "job.sdk"):  # they log every upload and closed connection
    logging.getLogger(f"ray.dashboard.modules.{_name}").setLevel(logging.ERROR)
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class ClusterRun:
    """A run that was submitted to the cluster. `state` is Ray's: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    id: str
    state: str
    message: str
    started_at: float | None
    metadata: dict[str, Any]
    """From the submitter, see `client.submit`."""

    @property
    def over(self) -> bool:
        return self.state in _OVER


NO_AGENT_YET, AGENTS_TIMEOUT_S = "No available agent", 40.0
"""Ray's error while the agents of a new cluster are starting, and how long that may take."""


class Jobs:
    """The runs of one cluster."""

    def __init__(self, address: str) -> None:
        """Connect to the head.

        Args:
            address: as in a job's `cluster.address`: host:port, the dashboard's URL, or "auto".

        Raises:
            ClusterError: that failed; the message says what to do.
        """
        self.address = address
        self._gcs = None if "://" in address else _head(address)
        url = _dashboard(self._gcs) if self._gcs else address
        with _explained(f"reach the dashboard of the Ray cluster at {address!r}, {url}"):
            check_listening(url.partition("://")[2])
        with _explained(f"reach the Ray cluster at {address!r}"), _no_other_address():
            self._client = JobSubmissionClient(url)

    def submit(self, run: str, command: str, archive: Path, env: dict[str, str], metadata: dict[str, Any]) -> None:
        """Start a command in the unpacked archive, as the Ray job `run`.

        A cluster that has just been started accepts no jobs for some seconds; this waits for it.

        Args:
            run: name of the run, and id of the job.
            command: of the driver.
            archive: the packed working directory.
            env: variables for the driver and its workers.
            metadata: for the driver and for observers; JSON.

        Raises:
            ClusterError: the cluster rejects the job, or cannot be reached.
        """
        # Ray reads this variable from the environment of the job, not of the head.
        env = {**env, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_PATIENCE_S)}
        until = time.monotonic() + AGENTS_TIMEOUT_S
        with _explained(f"submit to the Ray cluster at {self.address!r}"):
            while True:
                try:
                    self._client.submit_job(
                        entrypoint=command,
                        submission_id=run,
                        runtime_env={"working_dir": str(archive), "env_vars": env},
                        metadata={METADATA: json.dumps(metadata)},
                    )
                    return
                except RuntimeError as error:  # Ray's client raises no other class
                    if NO_AGENT_YET not in str(error) or time.monotonic() > until:
                        raise
                time.sleep(1.0)

    def all(self) -> list[ClusterRun]:
        """The launcher's runs that the cluster remembers, oldest first.

        Raises:
            ClusterError: it cannot be reached.
        """
        with _explained(f"list the jobs of the Ray cluster at {self.address!r}"):
            found = [job for job in self._client.list_jobs() if METADATA in (job.metadata or {})]
        return sorted(map(_cluster_run, found), key=lambda run: run.started_at or 0.0)

    def one(self, run: str) -> ClusterRun:
        """What the cluster knows of a run.

        Raises:
            ClusterError: it has no such run, or cannot be reached.
        """
        with _explained(f"ask the Ray cluster at {self.address!r} for the run {run}"):
            return _cluster_run(self._client.get_job_info(run))

    def stop(self, run: str, *, force: bool = False) -> ClusterRun:
        """Stop a run and wait until it is over.

        Args:
            force: kill the workers at once, without the seconds to end by themselves.

        Raises:
            ClusterError: it is still running after `STOP_TIMEOUT_S`, or the cluster cannot be reached.
        """
        with _explained(f"stop the run {run}"):
            if force:  # before the SIGTERM, at which the driver looks for it
                self._request_force(run)
            self._client.stop_job(run)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not (found := self.one(run)).over:
            if time.monotonic() > deadline:
                raise ClusterError(f"{run} is still {found.state} {STOP_TIMEOUT_S:.0f} s after it was asked to stop")
            time.sleep(0.2)
        return found

    def request_stop(self, run: str) -> None:
        """As `stop`, without waiting."""
        with _explained(f"stop the run {run}"):
            self._client.stop_job(run)

    def output(self, run: str) -> str:
        """All that the run's driver has printed so far."""
        with _explained(f"read the output of {run}"):
            return str(self._client.get_job_logs(run))

    def follow(self, run: str) -> Iterator[str]:
        """The output of the run's driver from its beginning to its end, in pieces, reconnecting where necessary.

        Ray sends the output from its beginning to every connection. After a reconnection the characters given already
        are skipped.

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
                # The stream of a running job may end, too, when a proxy closes it or the head restarts.
                if self.one(run).over:
                    return
            except Exception as error:  # aiohttp's, requests' or Ray's, for the same cause
                lost_at = lost_at or time.monotonic()
                if time.monotonic() > lost_at + RECONNECT_S:
                    raise ClusterError(
                        f"the Ray cluster at {self.address!r} has been out of reach for {RECONNECT_S:.0f} s: {error}; "
                        f"the run {run} may go on there"
                    ) from error
            time.sleep(1.0)

    def _request_force(self, run: str) -> None:
        """Leave a note for the driver that the SIGTERM to come means force; it goes through the head, not the
        dashboard."""
        if self._gcs is None:
            raise ClusterError(f"--force needs the head's own address, host:port; got the dashboard's, {self.address}")
        GcsClient(address=self._gcs).internal_kv_put(_force_key(run), b"1", True, timeout=KV_TIMEOUT_S)

    def _pieces(self, run: str) -> Iterator[str]:
        # An async generator of Ray's, for which this thread needs an event loop of its own.
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


def force_requested(run: str) -> bool:
    """In a driver, after a SIGTERM: whether it was sent by `stop(force=True)`. Removes the note."""
    client = GcsClient(address=os.environ["RAY_ADDRESS"])
    wanted = client.internal_kv_get(_force_key(run), timeout=KV_TIMEOUT_S) is not None
    if wanted:
        client.internal_kv_del(_force_key(run), False, timeout=KV_TIMEOUT_S)
    return wanted


def _force_key(run: str) -> bytes:
    return f"narrowgauge:force:{run}".encode()


def _cluster_run(job: Any) -> ClusterRun:
    metadata: dict[str, Any] = json.loads(job.metadata[METADATA])
    started_at = job.start_time / 1000 if job.start_time else None
    return ClusterRun(job.submission_id, str(job.status.value), job.message or "", started_at, metadata)


def _head(address: str) -> str:
    """host:port of a cluster's head; "auto" asks Ray for the one that this machine belongs to."""
    if address == "auto":
        with _explained("find a Ray cluster for the address 'auto'", "give its host:port, or set RAY_ADDRESS to that"):
            address = services.canonicalize_bootstrap_address_or_die("auto")
    return address


def _dashboard(address: str) -> str:
    """The URL of the dashboard of the cluster whose head listens at host:port.

    Raises:
        ClusterError: no head of a cluster listens there, it has no dashboard, or only its own machine can reach it.
    """
    with _explained(f"reach the Ray cluster at {address!r}"):
        check_head(address)
    host = address.rpartition(":")[0].strip("[]")
    with _explained(f"ask the Ray cluster at {address!r} for its dashboard"):
        known = GcsClient(address=address).internal_kv_get(
            ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD, timeout=KV_TIMEOUT_S
        )
    advice = f"start the head with `ray start --head --include-dashboard=true --dashboard-host={host}`"
    if not known:
        raise ClusterError(
            f"the Ray cluster at {address!r} has no dashboard, through which jobs are submitted; {advice}"
        )
    there = known.decode()
    # Ray's default: the head's own users reach such a dashboard, everybody else gets a refused connection.
    if _is_loopback(there.rpartition(":")[0]) and not _is_here(host):
        raise ClusterError(
            f"the dashboard of the Ray cluster at {address!r} listens on {there}, reachable only from its own machine; "
            f"{advice}"
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
def _explained(what: str, advice: str = "start it there with `ray start --head`") -> Iterator[None]:
    """Turn any exception inside into a ClusterError of one line. Ray's client has no classes that distinguish causes,
    and some of its messages end with the head's whole traceback."""
    try:
        yield
    except ClusterError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ClusterError(f"cannot {what}: {reason}; {advice}") from error


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Unset the variables that Ray's client prefers to the address it is given."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
