"""A worker's environment and entrypoints, and the agent that starts, watches and ends it. Without Ray."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from launcher.config.job import Job, Workers
from launcher.errors import EntrypointError
from launcher.planning.placement import place
from launcher.record.events import Event, Exited, Logged, Noted, Raised, Reported, Started
from launcher.record.seats import Node
from launcher.run import worker
from launcher.run.agent import MASTER_PORTS, Agent, WorkerSpec, network

NODE = Node("a", "box", "127.0.0.1", 8)


def environment_of(job: Job, rank: int) -> dict[str, str]:
    seats = place([NODE], job.workers, emulate_hosts=True)
    return worker.environment(
        job,
        seats[rank],
        len(seats),
        master=("127.0.0.1", 23456),
        token="secret",
        checkpoints=Path("/runs/x/checkpoints"),
        traces=Path("/runs/x/traces"),
    )


def test_the_environment_is_torchruns_and_ours() -> None:
    job = Job(
        name="demo",
        entrypoint="train.py",
        env={"DATA": "/data", "OMP_NUM_THREADS": "3"},
        workers={"count": 4, "hosts": 2},
        collectives={"timeout_s": 30.0, "hang_report_s": 10.0, "streams": 2, "codec": "int8"},
        checkpoint={"every_steps": 50},
        global_batch=64,
    )
    assert environment_of(job, 3) == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "23456",
        "DATA": "/data",
        "OMP_NUM_THREADS": "3",
        "PYTHONFAULTHANDLER": "1",
        "NARROWGAUGE_HOST": "host-1",
        "NARROWGAUGE_TOKEN": "secret",
        "NARROWGAUGE_BACKEND": "narrowgauge",
        "NARROWGAUGE_CODEC": "int8",
        "NARROWGAUGE_STREAMS": "2",
        "NARROWGAUGE_SLICE_BYTES": str(job.collectives.slice_bytes),
        "NARROWGAUGE_TIMEOUT_S": "30.0",
        "NARROWGAUGE_HANG_REPORT_S": "10",
        "NARROWGAUGE_CHECKPOINT_DIR": "/runs/x/checkpoints",
        "NARROWGAUGE_CHECKPOINT_EVERY": "50",
        "NARROWGAUGE_CHECKPOINT_KEEP": "3",
        "NARROWGAUGE_GLOBAL_BATCH": "64",
        "NARROWGAUGE_REBALANCE": "1",
    }


def test_a_host_that_is_not_emulated_has_no_name_of_ours() -> None:
    variables = environment_of(Job(name="demo", entrypoint="train.py", workers=Workers(count=2, cpus=2)), 1)
    assert "NARROWGAUGE_HOST" not in variables
    assert "NARROWGAUGE_TIMEOUT_S" not in variables
    assert variables["OMP_NUM_THREADS"] == "2"


# ---- entrypoints ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that can be imported from; sys.argv and sys.path are put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worker"])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


SHOW = "import sys\nprint(__name__, sys.argv)\ndef main():\n    print('called', sys.argv)\n"


def test_a_file_runs_as_main_and_finds_its_neighbours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "scripts").mkdir()
    (folder / "scripts" / "entry_neighbour.py").write_text("WORD = 'found'\n")
    (folder / "scripts" / "entry_file.py").write_text("from entry_neighbour import WORD\nprint(WORD)\n" + SHOW)
    worker.run("scripts/entry_file.py", ["--steps", "3"])
    assert capsys.readouterr().out == f"found\n__main__ ['{folder}/scripts/entry_file.py', '--steps', '3']\n"


def test_a_module_runs_as_main(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "entry_module.py").write_text(SHOW)
    worker.run("entry_module", ["-v"])
    assert capsys.readouterr().out == f"__main__ ['{folder}/entry_module.py', '-v']\n"


def test_a_function_is_called(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "entry_function.py").write_text(SHOW)
    worker.run("entry_function:main", ["-v"])
    assert capsys.readouterr().out.splitlines()[1] == "called ['entry_function:main', '-v']"


def test_an_entrypoint_that_is_not_there(folder: Path) -> None:
    (folder / "entry_other.py").write_text(SHOW)
    with pytest.raises(EntrypointError, match="no function 'mian' in module 'entry_other'"):
        worker.run("entry_other:mian", [])
    with pytest.raises(EntrypointError, match=r"no script .*nothing\.py on this node"):
        worker.run("nothing.py", [])


# ---- the agent -----------------------------------------------------------------------------------------------------


def order(folder: Path, script: str, rank: int = 0) -> WorkerSpec:
    (folder / "script.py").write_text(script)
    (folder / "logs").mkdir(exist_ok=True)
    variables = {"NARROWGAUGE_BACKEND": "gloo", "NARROWGAUGE_CODEC": "none", "RANK": str(rank)}
    return WorkerSpec(
        rank, "script.py", ("an argument",), variables, str(folder), folder / "logs" / "rank-0.log", "127.0.0.1"
    )


def until_exit(agent: Agent) -> list[Event]:
    events: list[Event] = []
    while not any(isinstance(event, Exited) for event in events):
        new = agent.next_events(timeout_s=200)
        assert new, f"nothing happened for 200 s after {events}"
        events += new
    return events


def eventually(check: Callable[[], bool], timeout_s: float = 100.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not check() and time.monotonic() < deadline:
        time.sleep(0.02)
    return check()


def test_what_a_script_reports_arrives_before_its_end(tmp_path: Path) -> None:
    agent = Agent()
    agent.start(
        order(
            tmp_path,
            "import sys\nfrom launcher import progress\n"
            "print('hello', sys.argv[1])\nprint('problem', file=sys.stderr)\n"
            "for step in range(100):\n    progress.report(step + 1, of=100, loss=0.5, tokens=3, lr=0.1)\n"
            "progress.note(answer=42)\n",
            rank=3,
        )
    )
    events = until_exit(agent)
    assert isinstance(events[0], Started)
    reports = [event for event in events if isinstance(event, Reported)]
    assert [report.step for report in reports] == list(range(1, 101))
    assert (reports[0].rank, reports[0].of, reports[0].tokens, reports[0].values) == (3, 100, 3, {"lr": 0.1})
    assert [event.values for event in events if isinstance(event, Noted)] == [{"answer": 42}]
    assert isinstance(events[-1], Exited)
    assert events[-1].code == 0
    assert (tmp_path / "logs" / "rank-0.log").read_text() == "hello an argument\nproblem\n"


def test_an_exception_is_printed_without_our_own_frames(tmp_path: Path) -> None:
    agent = Agent()
    agent.start(order(tmp_path, "def boom():\n    raise KeyError('x')\nboom()\n"))
    events = until_exit(agent)
    (raised,) = [event for event in events if isinstance(event, Raised)]
    assert (raised.kind, raised.message, raised.culprit) == ("KeyError", "'x'", None)
    assert isinstance(events[-1], Exited)
    assert events[-1].code == 1
    log = (tmp_path / "logs" / "rank-0.log").read_text()
    assert log.startswith(f'Traceback (most recent call last):\n  File "{tmp_path}/script.py", line 3')
    assert "launcher/" not in log


@pytest.mark.parametrize(("force", "code"), [(False, -signal.SIGTERM), (True, -signal.SIGKILL)])
def test_stopping_ends_the_worker_and_all_that_it_started(tmp_path: Path, force: bool, code: int) -> None:
    agent = Agent()
    agent.start(
        order(
            tmp_path,
            "import subprocess, time\nfrom launcher import progress\n"
            "child = subprocess.Popen(['sleep', '600'])\nprogress.note(child=child.pid)\ntime.sleep(600)\n",
        )
    )
    events: list[Event] = []
    while not any(isinstance(event, Noted) for event in events):
        events += agent.next_events(timeout_s=200)
    (grandchild,) = [event.values["child"] for event in events if isinstance(event, Noted)]
    agent.stop(force)
    assert [event.code for event in until_exit(agent) if isinstance(event, Exited)] == [code]
    assert eventually(lambda: not running(grandchild))


@pytest.mark.parametrize("call", ["time.sleep(600)", "ctypes.PyDLL(None).sleep(600)"])
def test_a_worker_that_hangs_shows_where_when_it_is_stopped(tmp_path: Path, call: str) -> None:
    script = (
        "import ctypes, os, signal, time\nfrom launcher import progress\n"
        "if os.fork() == 0:\n    os.kill(os.getpid(), signal.SIGTERM)\nos.wait()\n"
        f"def stuck():\n    {call}\nprogress.note(up=1)\nstuck()\n"
    )
    agent = Agent()
    agent.start(order(tmp_path, script))
    events: list[Event] = []
    while not any(isinstance(event, Noted) for event in events):
        events += agent.next_events(timeout_s=200)
    time.sleep(0.2)
    agent.stop(force=False)
    assert [event.code for event in until_exit(agent) if isinstance(event, Exited)] == [-signal.SIGTERM]
    log = (tmp_path / "logs" / "rank-0.log").read_text()
    assert log.count('script.py", line 7 in stuck') == 1
    assert log.count("most recent call first") == 1


def test_a_worker_does_not_outlive_its_agent(tmp_path: Path) -> None:
    script = order(tmp_path, "import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    program = (
        "import sys, time, pickle\nfrom launcher.run.agent import Agent\nagent = Agent()\n"
        "agent.start(pickle.loads(bytes.fromhex(sys.argv[1])))\n"
        "print(agent.next_events(200)[0].pid, flush=True)\ntime.sleep(600)\n"
    )
    import pickle

    agent = subprocess.Popen(
        [sys.executable, "-c", program, pickle.dumps(script).hex()], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert agent.stdout is not None
    pid = int(agent.stdout.readline())
    assert eventually(lambda: script.log.read_text() == "up\n", timeout_s=200)
    agent.kill()
    agent.wait()
    assert eventually(lambda: not running(pid))


def test_output_on_a_node_without_the_run_folder_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    here = order(tmp_path, "import os\nprint('one')\nprint(os.environ['NARROWGAUGE_LOG'])\n")
    away = WorkerSpec(**{**vars(here), "log": Path("/elsewhere/runs/demo-1/logs/rank-0.log")})
    agent = Agent()
    agent.start(away)
    events = until_exit(agent)
    local = tmp_path / "node" / "narrowgauge" / "demo-1" / "rank-0.log"
    assert "".join(event.text for event in events if isinstance(event, Logged)) == f"one\n{local}\n"
    assert local.read_text() == f"one\n{local}\n"


@pytest.mark.parametrize("missing", ["folder", "log"])
def test_a_worker_that_cannot_be_started_is_reported_at_once(tmp_path: Path, missing: str) -> None:
    here = order(tmp_path, "")
    if missing == "folder":
        bad = replace(here, cwd=str(tmp_path / "nowhere"))
    else:
        here.log.mkdir()
        bad = replace(here, rank=3)
    open_before = psutil.Process().num_fds()
    with pytest.raises(RuntimeError, match=f"cannot start rank {bad.rank} on .*{re.escape(bad.cwd)}"):
        Agent().start(bad)
    assert eventually(lambda: psutil.Process().num_fds() == open_before)


def test_a_report_that_cannot_be_read_is_logged_and_the_next_one_counts(tmp_path: Path) -> None:
    script = (
        "import os\nfrom launcher import progress\npipe = progress._reporter._pipe\n"
        "for line in ('7', 'no json', '{\"event\": \"Exited\"}'):\n    print(line, file=pipe)\n"
        "progress.report('x')\nos.environ['RANK'] = '99'\nprogress.report(2, loss=1)\n"
    )
    agent = Agent()
    agent.start(order(tmp_path, script))
    events = until_exit(agent)
    assert [(event.rank, event.step) for event in events if isinstance(event, Reported)] == [(0, 2)]
    remarks = [event.text for event in events if isinstance(event, Logged)]
    assert len(remarks) == 4
    assert remarks[3] == "launcher: unreadable report: not a Reported: step is 'x'\n"
    assert isinstance(events[-1], Exited)


def test_a_free_port_can_be_listened_on() -> None:
    assert Agent().free_port("127.0.0.1") in MASTER_PORTS


def running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_an_address_that_no_interface_has_is_refused(tmp_path: Path) -> None:
    elsewhere = replace(order(tmp_path, ""), address="203.0.113.9")
    with pytest.raises(RuntimeError, match=r"no network interface here has the address 203\.0\.113\.9 .*only .*lo 127"):
        Agent().start(elsewhere)
    chosen = replace(elsewhere, env={**elsewhere.env, "NARROWGAUGE_INTERFACE": "lo"})
    assert network(chosen) == {"NARROWGAUGE_INTERFACE": "lo", "GLOO_SOCKET_IFNAME": "lo"}
