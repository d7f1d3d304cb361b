"""A run on a cluster, from outside: hand it over, watch it, fetch it.

`submit` makes the run's folder here, sends the working directory, and has the cluster start `driver.py`. From
then on the run needs nothing of this machine. A `RunFollower` gives the run's folder as it grows, from the feed
(`feed.py`), to whoever looks: this terminal, or another one on another machine.
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
from launcher.planning.known_machines import packed, remembered
from launcher.record.replay import Reader
from launcher.record.run_dir import RunDir
from launcher.record.tail import LogTails
from launcher.remote.feed import Mirror
from launcher.remote.packing import pack
from launcher.remote.ray_jobs import ClusterRun, Jobs

COMMAND = "exec python -m launcher.remote.driver"
REFRESH_S = 0.25


def submit(job: Job, submitted_at: float, view: PlainView, resumed: Path | None = None) -> tuple[Jobs, RunDir]:
    """Hand a run over to the cluster at the job's address.

    Args:
        resumed: the folder of the run whose checkpoints this one goes on with.

    Raises:
        ClusterError: the cluster can't be reached, or doesn't take it.
        PackingError: the working directory can't travel.
    """
    jobs = Jobs(str(job.cluster.address))
    with tempfile.TemporaryDirectory(prefix="narrowgauge-") as scratch:
        archive = Path(scratch) / "working_dir.zip"
        num_bytes = pack(Path.cwd(), archive, exclude=job.cluster.exclude, runs_dir=Path(job.runs_dir))
        run_dir = RunDir.create(job, resumed)
        token = secrets.token_hex(8)
        run_dir.write_cluster({"address": job.cluster.address, "token": token})
        told = {
            "version": __version__,
            "id": run_dir.id,
            "job": _from_here(job).model_dump(),
            "folder": str(run_dir.path),
            "token": token,
            "resumed": str(resumed) if resumed else None,
            "remembered": packed(remembered(job)),
            "submitted_at": submitted_at,
            "from": socket.gethostname(),
        }
        size = f"{num_bytes / 1024**2:.1f} MiB of files"
        view.stage(f"handing {run_dir.path.name} to the cluster at {job.cluster.address}, with {size}")
        try:
            jobs.submit(run_dir.path.name, COMMAND, archive, job.env, told)
        except BaseException:
            shutil.rmtree(run_dir.path)
            raise
    return jobs, run_dir


class RunFollower:
    """A run on a cluster, as a folder on this machine that follows it; the folder goes when the block ends."""

    def __init__(self, jobs: Jobs, found: ClusterRun) -> None:
        self._jobs, self._found = jobs, found
        self._pieces: queue.Queue[str | BaseException | None] = queue.Queue()
        self.over = False

    def __enter__(self) -> RunFollower:
        job = Job.model_validate(self._found.told["job"])
        self._scratch = tempfile.TemporaryDirectory(prefix="narrowgauge-")
        self.folder = Path(self._scratch.name) / self._found.id
        self.folder.mkdir()
        (self.folder / "config.yaml").write_text(job_file.to_yaml(job), encoding="utf-8")
        self._mirror = Mirror(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def catch_up(self) -> None:
        """Take in all that there is now."""
        self._mirror.take(self._jobs.output(self._found.id))
        self.over = self._found.over

    def start(self) -> None:
        """Follow the run from now on; `advance` takes in what came."""
        threading.Thread(target=self._follow, daemon=True).start()

    def advance(self, timeout_s: float) -> None:
        """Take in what has come, or wait that long for something.

        Raises:
            ClusterError: as of `Jobs.follow`.
        """
        pieces = []
        try:
            pieces.append(self._pieces.get(timeout=timeout_s))
            while True:
                pieces.append(self._pieces.get_nowait())
        except queue.Empty:
            pass
        for piece in pieces:
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                self.over = True
            else:
                self._mirror.take(piece)
        self.over = self.over or (self.folder / "summary.json").exists()  # the last thing that a driver tells

    @property
    def others(self) -> list[str]:
        """What was printed on the driver's output that was no part of the feed, such as a traceback."""
        return list(self._mirror.others)

    def summary(self) -> dict[str, Any]:
        """How the run ended, which it has.

        Raises:
            ClusterError: its driver couldn't tell, since it never began or was killed.
        """
        path = self.folder / "summary.json"
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        found = self._jobs.one(self._found.id)
        raise ClusterError(early_end(found, self.others))

    def settle(self, run_dir: Path) -> dict[str, Any]:
        """Keep the folder of a run that is over as `run_dir`, with a page and with its own paths in the summary, unless
        the driver has written there itself.

        Returns:
            The summary.
        """
        summary = self.summary()
        if (run_dir / "launcher.json").exists():
            return summary
        summary = dict(_moved(summary, summary["folder"], str(run_dir)))
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        shutil.copytree(self.folder, run_dir, dirs_exist_ok=True)
        report.write(run_dir)
        return summary

    def _follow(self) -> None:
        try:
            for piece in self._jobs.follow(self._found.id):
                self._pieces.put(piece)
            self._pieces.put(None)
        except BaseException as error:
            self._pieces.put(error)


def follow(jobs: Jobs, run_dir: RunDir, view: PlainView, *, follow_logs: bool) -> dict[str, Any]:
    """Show a run until its end, keep its folder, and give its summary. The first Ctrl-C stops the run, the second
    leaves it to itself.

    Raises:
        ClusterError: it ended without a summary, or the cluster is out of reach.
        KeyboardInterrupt: at the second Ctrl-C.
    """
    name = run_dir.path.name
    with _ctrl_c() as presses, RunFollower(jobs, jobs.one(name)) as watch:
        watch.start()
        reader = Reader(watch.folder)
        logs = LogTails(reader.dir, range(reader.replay.world_size)) if follow_logs else None
        seated = stopping = False
        while not watch.over:
            watch.advance(REFRESH_S)
            if presses and not stopping:
                stopping = True
                view.stage("stopping; once more to leave it to itself")
                jobs.tell_to_stop(name)
                reader.replay.state.interrupt(time.time())
            if len(presses) > 1:
                raise KeyboardInterrupt
            for text in reader.new_stages():
                view.stage(text)
            seats = reader.seats()
            if seats and not seated:
                seated = True
                view.seats(seats)
            view.lines(reader.new_lines())
            for rank, line in logs.new_lines(rest=watch.over) if logs else ():
                view.log(rank, line)
            if seated:
                view.refresh(reader.replay.state, reader.replay.tally)
        view.lines(reader.replay.tally.rest())
        return watch.settle(run_dir.path)


def early_end(found: ClusterRun, output: list[str]) -> str:
    """Why a driver that left no summary ended, for people."""
    said = "\n".join(line for line in output[-15:] if line.strip())
    if "No module named" in said and ("launcher" in said or "collectives" in said):
        return (
            "the head's `python` has no narrowgauge: install it in the environment that Ray runs in, on every node, "
            f"and have that environment's `python` first in PATH when Ray is started; it said:\n{said}"
        )
    if found.state == "STOPPED":
        return f"the run {found.id} was stopped before it had begun"
    wrote = f"; it wrote:\n{said}" if said else ""
    return f"the driver of {found.id} ended without a summary, {found.state}: {found.message.strip()}{wrote}"


def _from_here(job: Job) -> Job:
    """The job with paths of the working directory as they are seen from there."""

    def relative(path: str) -> str:
        inside = Path(path).is_absolute() and Path(path).is_relative_to(Path.cwd())
        return str(Path(path).relative_to(Path.cwd())) if inside else path

    topology = job.collectives.topology
    collectives = job.collectives.model_copy(update={"topology": relative(topology) if topology else None})
    return job.model_copy(update={"entrypoint": relative(job.entrypoint), "collectives": collectives})


def _moved(value: Any, old: str, new: str) -> Any:
    """A JSON value in which paths below one folder lie below another."""
    if isinstance(value, dict):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith(old + "/")):
        return new + value[len(old) :]
    return value


@contextmanager
def _ctrl_c() -> Iterator[list[float]]:
    """A list that grows at each Ctrl-C. Any other signal ends this process and leaves the run alone."""
    presses: list[float] = []

    def pressed(number: int, frame: FrameType | None) -> None:
        presses.append(time.time())

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)
