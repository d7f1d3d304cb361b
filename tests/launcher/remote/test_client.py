"""How a driver's early end is explained, where it keeps the run, and paths from one machine to another."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from pathlib import Path

import pytest

from launcher.config.job import Job
from launcher.errors import ClusterError
from launcher.planning.known_machines import compressed, decompressed
from launcher.record.events import Exited, Started
from launcher.record.run_dir import RunDir
from launcher.remote.client import RunFollower, _move_paths, _with_relative_paths, explain_missing_summary
from launcher.remote.driver import earlier, folder
from launcher.remote.feed import FedRunDir, Feed
from launcher.remote.ray_jobs import ClusterRun, Jobs


@pytest.mark.parametrize(
    ("state", "output", "words"),
    [
        (
            "FAILED",
            ["ModuleNotFoundError: No module named 'launcher' that is narrowgauge's, in /usr/bin/python"],
            "the head's `python` has no narrowgauge",
        ),
        ("FAILED", ["ModuleNotFoundError: No module named 'collectives'"], "the head's `python` has no narrowgauge"),
        ("FAILED", ["boom"], "the driver of x-1 ended without a summary, FAILED: why; its output:\nboom"),
        ("STOPPED", [], "the run x-1 was stopped before it had begun"),
    ],
)
def test_a_missing_summary_is_explained(state: str, output: list[str], words: str) -> None:
    assert explain_missing_summary(ClusterRun("x-1", state, "why", None, {}), output).startswith(words)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "what listens there is not the head of a Ray cluster"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what listens there is not the head of a Ray cluster"),
        (None, "it accepts connections, but does not answer within 5 s"),
    ],
    ids=["closes", "another server", "hangs"],
)
def test_what_is_no_head_is_named_in_one_line(answer: bytes | None, words: str, capfd: pytest.CaptureFixture) -> None:
    """Without Ray's own lines, which come after its own timeouts of a minute."""
    taken = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(server.accept()[0])
                    if answer is not None:
                        taken[-1].sendall(answer)
                        taken.pop().close()

        threading.Thread(target=serve, daemon=True).start()
        began, address = time.monotonic(), f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError) as caught:
            Jobs(address)
        server.shutdown(socket.SHUT_RDWR)
    assert str(caught.value) == (
        f"cannot reach the Ray cluster at {address!r}: {words}; start it there with `ray start --head`"
    )
    assert time.monotonic() - began < 40
    assert capfd.readouterr().err == ""


def test_paths_in_a_summary_move_with_its_folder() -> None:
    there = {"folder": "/far/x-1", "failure": {"log": "/far/x-1/logs/rank-0.log"}, "other": ["/far/x-12", 3, None]}
    assert _move_paths(there, "/far/x-1", "/here/y") == {
        "folder": "/here/y",
        "failure": {"log": "/here/y/logs/rank-0.log"},
        "other": ["/far/x-12", 3, None],
    }


def test_a_path_below_the_working_directory_travels_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job(
        name="x", entrypoint=str(tmp_path / "a.py"), workers={"count": 1}, collectives={"topology": "/data/t.json"}
    )
    assert _with_relative_paths(job).entrypoint == "a.py"
    assert _with_relative_paths(job).collectives.topology == "/data/t.json"


def test_a_run_is_kept_in_the_submitters_folder_only_if_it_is_that_very_folder(tmp_path: Path) -> None:
    job = Job(name="demo", entrypoint="a.py", workers={"count": 1}, runs_dir=str(tmp_path / "runs"))
    theirs = RunDir.create(job)
    theirs.write_cluster({"address": "x:1", "token": "secret"})
    metadata = {"folder": str(theirs.path), "id": theirs.id, "token": "secret"}
    assert folder(metadata, job, tmp_path).path == theirs.path
    ours = folder({**metadata, "token": "another"}, job, tmp_path)
    assert ours.path == tmp_path / "narrowgauge" / theirs.path.name
    assert ours.logs.is_dir()


def test_a_fetched_run_has_its_page(tmp_path: Path) -> None:
    """What a driver elsewhere sent of a run, saved as the submitter's folder."""
    job = Job(name="demo", entrypoint="a.py", workers={"count": 1}, runs_dir=str(tmp_path / "runs"))
    ours, output = RunDir.create(job), io.StringIO()
    theirs = FedRunDir.fed(RunDir(tmp_path / "far" / ours.path.name, ours.name, ours.id), Feed(output))
    theirs.make(job)
    theirs.append(Started(0, 1.0, 7, str(theirs.log(0)), None))
    theirs.append(Exited(0, 2.0, 0))
    theirs.write_summary({"status": "finished", "folder": str(theirs.path), "failure": None})

    class AnsweringJobs(Jobs):
        """The head's answers, without a head."""

        def __init__(self) -> None: ...

        def output(self, run: str) -> str:
            return output.getvalue()

    with RunFollower(
        AnsweringJobs(), ClusterRun(ours.path.name, "SUCCEEDED", "", None, {"job": job.model_dump()})
    ) as watch:
        watch.catch_up()
        assert watch.save_to(ours.path)["folder"] == str(ours.path)
    assert "finished" in (ours.path / "report.html").read_text()
    assert [line.partition(",")[0] for line in ours.events.read_text().splitlines()] == [
        '{"event": "Started"',
        '{"event": "Exited"',
    ]


def test_checkpoints_to_resume_from_are_where_the_submitter_sees_them_or_where_a_driver_kept_them(
    tmp_path: Path,
) -> None:
    theirs, ours = tmp_path / "shared" / "demo-1", tmp_path / "narrowgauge" / "demo-1"
    assert earlier(str(theirs), tmp_path) == theirs
    (ours / "checkpoints").mkdir(parents=True)
    assert earlier(str(theirs), tmp_path) == ours
    (theirs / "checkpoints" / "step-1").mkdir(parents=True)
    assert earlier(str(theirs), tmp_path) == theirs


def test_what_is_remembered_of_a_large_farm_fits_into_an_environment_variable() -> None:
    remembered = "".join(
        f'{{"name": "box-{i}", "address": "10.0.{i // 256}.{i % 256}", "cpus": 16}}\n' for i in range(1000)
    )
    small = compressed(remembered)
    assert small is not None
    assert len(small) < 32_000
    assert decompressed(small) == remembered
    assert decompressed(compressed(None)) is None
