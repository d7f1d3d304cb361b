"""A run on a cluster, from outside: submit it, follow it, fetch its folder.

`submit` makes the run's folder here, sends the working directory, and has the cluster start `driver.py`. From then on
the run needs nothing of this machine: it may sleep, lose the network or close the terminal. The folder made here is
only completed when somebody follows the run to its end or looks at it later.

A `RunFollower` keeps a temporary copy of the run's folder, which grows with the feed (`feed.py`). This terminal and any
other one on any machine read that copy by the same code as a local run.
"""

from __future__ import annotations

import json
import queue
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from collectives.version import __version__
from launcher import report
from launcher.config import job_file
from launcher.config.job import Job
from launcher.errors import ClusterError
from launcher.monitor.terminal import PlainView
from launcher.planning.known_machines import cached_json, compressed
from launcher.record.replay import Reader
from launcher.record.run_dir import RunDir
from launcher.record.tail import LogTails
from launcher.remote.feed import Mirror
from launcher.remote.packing import BOOTSTRAP, pack
from launcher.remote.ray_jobs import ClusterRun, Jobs

COMMAND = f"exec python {BOOTSTRAP} launcher.remote.driver"
REFRESH_S = 0.25


def submit(job: Job, submitted_at: float, view: PlainView, resumed: Path | None = None) -> tuple[Jobs, RunDir]:
    """Submit a run to the cluster at the job's address.

    Args:
        submitted_at: when the user submitted it, in seconds since 1970.
        resumed: the folder of the run whose checkpoints this one continues from.

    Returns:
        The cluster, and the run's folder on this machine.

    Raises:
        ClusterError: the cluster cannot be reached, or rejects the job.
        PackingError: the working directory is too large, or cannot be read.
    """
    jobs = Jobs(str(job.cluster.address))
    with tempfile.TemporaryDirectory(prefix="narrowgauge-") as scratch:
        archive = Path(scratch) / "working_dir.zip"
        num_bytes = pack(Path.cwd(), archive, exclude=job.cluster.exclude, runs_dir=Path(job.runs_dir))
        # After packing, which may fail: a run that was not submitted leaves no folder.
        run_dir = RunDir.create(job, resumed)
        token = secrets.token_hex(8)  # by which the driver recognizes shared storage
        run_dir.write_cluster({"address": job.cluster.address, "token": token})
        metadata = {
            "version": __version__,
            "id": run_dir.id,
            "job": _with_relative_paths(job).model_dump(),
            "folder": str(run_dir.path),
            "token": token,
            "resumed": str(resumed) if resumed else None,
            "remembered": compressed(cached_json(job)),
            "submitted_at": submitted_at,
            "from": socket.gethostname(),
        }
        size = f"{num_bytes / 1024**2:.1f} MiB of files"
        view.stage(f"submitting {run_dir.path.name} to the cluster at {job.cluster.address}, with {size}")
        try:
            jobs.submit(run_dir.path.name, COMMAND, archive, job.env, metadata)
        except BaseException:  # a run that no cluster has would be listed as waiting forever
            shutil.rmtree(run_dir.path)
            raise
    return jobs, run_dir


class RunFollower:
    """A temporary folder on this machine that follows a run on a cluster; it is removed when the block ends.

    One thread reads from the cluster, and blocks in that; the caller's thread writes the folder in `advance`, so that
    nobody reads a file while it is written.
    """

    def __init__(self, jobs: Jobs, found: ClusterRun) -> None:
        self._jobs, self._found = jobs, found
        self._received: queue.Queue[str | BaseException | None] = queue.Queue()
        self.over = False

    def __enter__(self) -> RunFollower:
        job = Job.model_validate(self._found.metadata["job"])
        self._scratch = tempfile.TemporaryDirectory(prefix="narrowgauge-")
        self.folder = Path(self._scratch.name) / self._found.id
        self.folder.mkdir()
        (self.folder / "config.yaml").write_text(job_file.to_yaml(job), encoding="utf-8")
        self._mirror = Mirror(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def catch_up(self) -> None:
        """Apply all output so far."""
        self._mirror.write(self._jobs.output(self._found.id))
        self.over = self._found.over

    def start(self) -> None:
        """Follow the run from now on; `advance` applies what has arrived."""
        threading.Thread(target=self._follow, daemon=True).start()

    def advance(self, timeout_s: float) -> None:
        """Apply what has arrived; if nothing has, wait for it, at most `timeout_s` seconds.

        Raises:
            ClusterError: from `Jobs.follow`.
        """
        pieces = []
        try:
            pieces.append(self._received.get(timeout=timeout_s))
            while True:
                pieces.append(self._received.get_nowait())
        except queue.Empty:
            pass
        for piece in pieces:
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                self.over = True
            else:
                self._mirror.write(piece)
        # The summary is the last line of a feed. Ray itself ends the stream only some seconds later.
        self.over = self.over or (self.folder / "summary.json").exists()

    @property
    def other_lines(self) -> list[str]:
        """The last lines of the driver's output that do not belong to the feed, such as a traceback."""
        return list(self._mirror.other_lines)

    def summary(self) -> dict[str, Any]:
        """How the run ended; call it after that.

        Raises:
            ClusterError: there is no summary, since the driver did not start or was killed; the message says why.
        """
        path = self.folder / "summary.json"
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        found = self._jobs.one(self._found.id)
        raise ClusterError(explain_missing_summary(found, self.other_lines))

    def save_to(self, run_dir: Path) -> dict[str, Any]:
        """Save the folder of a run that is over as `run_dir`, with report.html and with this machine's paths in the
        summary. On shared storage the driver has written there itself, and nothing is changed.

        Returns:
            The summary.

        Raises:
            ClusterError: there is none (`summary`).
        """
        summary = self.summary()
        if (run_dir / "launcher.json").exists():
            return summary
        summary = dict(_move_paths(summary, summary["folder"], str(run_dir)))
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        shutil.copytree(self.folder, run_dir, dirs_exist_ok=True)
        report.write(run_dir)
        return summary

    def _follow(self) -> None:
        try:
            for piece in self._jobs.follow(self._found.id):
                self._received.put(piece)
            self._received.put(None)
        except BaseException as error:  # raised again in the caller's thread
            self._received.put(error)


def follow(jobs: Jobs, run_dir: RunDir, view: PlainView, *, follow_logs: bool) -> dict[str, Any]:
    """Show a run until its end, and save its folder. The first Ctrl-C stops the run, the second detaches from it.

    Returns:
        The run's summary.

    Raises:
        ClusterError: it ended without a summary, or the cluster is out of reach.
        KeyboardInterrupt: at the second Ctrl-C.
    """
    name = run_dir.path.name
    with _ctrl_c() as presses, RunFollower(jobs, jobs.one(name)) as follower:
        follower.start()
        reader = Reader(follower.folder)
        logs = LogTails(reader.dir, range(reader.replay.world_size)) if follow_logs else None
        placed = stopping = False
        while not follower.over:
            follower.advance(REFRESH_S)
            # Outside of the signal handler: the request to the cluster takes a moment, and may fail.
            if presses and not stopping:
                stopping = True
                view.stage("stopping; press Ctrl-C again to detach")
                jobs.request_stop(name)
                reader.replay.state.interrupt(time.time())  # so that the view shows stopped, not failed
            if len(presses) > 1:
                raise KeyboardInterrupt
            for text in reader.new_stages():
                view.stage(text)
            seats = reader.seats()
            if seats and not placed:
                placed = True
                view.seats(seats)
            view.lines(reader.new_lines())
            for rank, line in logs.new_lines(rest=follower.over) if logs else ():
                view.log(rank, line)
            if placed:
                view.refresh(reader.replay.state, reader.replay.tally)
        view.lines(reader.replay.tally.rest())
        return follower.save_to(run_dir.path)


def explain_missing_summary(found: ClusterRun, output: list[str]) -> str:
    """A message that says why a driver ended without a summary.

    Args:
        output: the last lines of its output that do not belong to the feed.
    """
    text = "\n".join(line for line in output[-15:] if line.strip())
    if "No module named" in text and ("launcher" in text or "collectives" in text):
        return (
            "the head's `python` has no narrowgauge: install it in the environment that Ray runs in, on every node, "
            f"and start Ray with that environment's `python` first in PATH; its output:\n{text}"
        )
    if found.state == "STOPPED":
        return f"the run {found.id} was stopped before it had begun"
    wrote = f"; its output:\n{text}" if text else ""
    return f"the driver of {found.id} ended without a summary, {found.state}: {found.message.strip()}{wrote}"


def _with_relative_paths(job: Job) -> Job:
    """The job with paths inside the working directory made relative: it is unpacked elsewhere on the cluster."""

    def relative(path: str) -> str:
        inside = Path(path).is_absolute() and Path(path).is_relative_to(Path.cwd())
        return str(Path(path).relative_to(Path.cwd())) if inside else path

    topology = job.collectives.topology
    collectives = job.collectives.model_copy(update={"topology": relative(topology) if topology else None})
    return job.model_copy(update={"entrypoint": relative(job.entrypoint), "collectives": collectives})


def _move_paths(value: Any, old: str, new: str) -> Any:
    """A JSON value with all paths below the folder `old` changed to paths below `new`."""
    if isinstance(value, dict):
        return {key: _move_paths(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_move_paths(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith(old + "/")):
        return new + value[len(old) :]
    return value


@contextmanager
def _ctrl_c() -> Iterator[list[float]]:
    """A list that grows with each Ctrl-C. SIGTERM and SIGHUP keep their default: they end this process and not the run,
    which is what somebody who closes a terminal expects of a run on a cluster."""
    presses: list[float] = []

    def pressed(number: int, frame: FrameType | None) -> None:
        presses.append(time.time())

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)
