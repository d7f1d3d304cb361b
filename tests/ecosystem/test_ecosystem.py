"""The command's own logic, with tiny programs; ``python -m tests.ecosystem`` runs the real ones."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.ecosystem import __main__ as command
from tests.ecosystem.catalogue import PROGRAMS
from tests.ecosystem.compare import Equal, compare
from tests.ecosystem.program import GLOO, OURS, OWN, Clone, Program
from tests.ecosystem.runner import Outcome, run

START = "import os, sys, time, torch, torch.distributed as dist\n"
ALONE = START + "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
TRAIN = """
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    loss = model(torch.randn(8, 4)).square().mean()
    loss.backward()
    optimizer.step()
    print("loss", loss.item())
"""
UNEQUAL = "print('loss', dist.distributed_c10d._get_default_group().name())"
RANDOM = "print('loss', time.time_ns())"


def program(folder: Path, name: str, text: str, processes: int = 1, timeout_s: float = 120.0) -> Program:
    script = folder / f"{name}.py"
    script.write_text(text)
    return Program(name, str(script), processes=processes, prints=r"^loss (\S+)", timeout_s=timeout_s)


def outcome(*values: str, steps: tuple[tuple[str, float, float], ...] = (), problem: str | None = None) -> Outcome:
    return Outcome(problem, [values], [[list(step) for step in steps]])  # lists, as JSON gives them


def test_equal_results_are_equal() -> None:
    gloo = outcome("1.5", "2.5", steps=(("ab", 1.0, 2.0),))
    verdict = compare(gloo, outcome("1.5", "2.5", steps=(("ab", 1.0, 2.0),)))
    assert verdict.equal is Equal.YES
    assert verdict.why == ""
    assert verdict.compared == "2 printed values, weights and gradients of 1 steps"
    assert verdict.ours == "2.5, #ab"


@pytest.mark.parametrize(
    ("ours", "why"),
    [
        (outcome("1.5", "2.6"), "rank 0, printed value 2: Gloo 2.5, ours 2.6"),
        (outcome("1.5"), "rank 0, printed value 2: Gloo 2.5, ours None"),
        (outcome("1.5", "2.5", "3"), "rank 0, printed value 3: Gloo None, ours 3"),
        (outcome("1.5", "2.5", steps=(("ab", 1.0, 2.0),)), "step 1"),
        (outcome(problem="ended with status 1"), "ours ended with status 1"),
    ],
)
def test_a_difference_is_found_and_shown(ours: Outcome, why: str) -> None:
    verdict = compare(outcome("1.5", "2.5"), ours)
    assert verdict.equal is Equal.NO
    assert why in verdict.why


def test_rounding_is_allowed_where_a_program_says_so() -> None:
    gloo, ours = outcome("1.5", steps=(("ab", 1.0, 2.0),)), outcome("1.500001", steps=(("cd", 1.0, 2.000001),))
    assert compare(gloo, ours).equal is Equal.NO
    assert compare(gloo, ours, tolerance=1e-5).equal is Equal.ROUNDED
    assert compare(gloo, outcome("1.6", steps=(("cd", 1.0, 2.0),)), tolerance=1e-5).equal is Equal.NO
    assert compare(outcome("weight a 1"), outcome("weight a 1.000001"), tolerance=1e-5).equal is Equal.ROUNDED
    assert compare(outcome("weight a 1"), outcome("weight b 1"), tolerance=1e-5).equal is Equal.NO
    assert compare(outcome("a"), outcome("b"), tolerance=1.0).equal is Equal.NO
    assert compare(outcome("1"), outcome(), tolerance=1.0).equal is Equal.NO


def test_what_is_excused_is_no_difference_and_its_reason_is_shown() -> None:
    verdict = compare(
        outcome("a passed", "b passed"), outcome("a failed", "b passed"), excused={"a passed": "by design"}
    )
    assert verdict.equal is Equal.YES
    assert verdict.why == "a passed: by design"
    assert compare(outcome("a passed"), outcome("a failed")).equal is Equal.NO


def test_a_program_that_fails_on_gloo_is_a_failure_of_the_set_up() -> None:
    both = compare(outcome(problem="ended with status 1"), outcome(problem="ended with status 2"))
    assert both.equal is Equal.BROKEN
    assert "Gloo ended with status 1; ours ended with status 2" in both.why
    assert compare(outcome(problem="ended with status 1"), outcome("1")).equal is Equal.BROKEN


def test_what_is_not_installed_is_skipped_with_the_command_that_gets_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = Program("absent", "x.py", packages=("no-such-distribution", "pytest"))
    clone = Clone("there", "https://example.org/there")
    assert absent.missing(None) == "pip install no-such-distribution"
    cloned = Program("cloned", "x.py", clone=clone)
    assert cloned.missing(None) == "git clone https://example.org/there DIR/there, and --programs DIR"
    assert f"git clone https://example.org/there {tmp_path}/there" in str(cloned.missing(tmp_path))
    saved = tmp_path / "saved.json"
    assert command.main([absent, cloned], ["--save", str(saved)]) == 0
    assert "skipped        pip install no-such-distribution" in capsys.readouterr().out
    assert [row["equal"] for row in json.loads(saved.read_text())["programs"]] == ["skipped", "skipped"]
    (tmp_path / "there").mkdir()
    assert cloned.missing(tmp_path) is None


def test_mistakes_in_the_command_line_are_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--only", "no-such"], "no program of that name"),
        (["--programs", str(tmp_path / "x")], "no such folder"),
    ):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments=arguments)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert command.main(arguments=["--list", "--only", "fsdp2"]) == 0
    assert capsys.readouterr().out.split()[0::3] == ["fsdp2"]
    assert command.main(arguments=["--list", "--only", "fsdp2-", "dtensor"]) == 0
    assert capsys.readouterr().out.split()[0::3] == ["fsdp2-bfloat16", "fsdp2-hsdp", "fsdp2-tp", "dtensor"]


def test_the_catalogue_is_sound() -> None:
    names = [one.name for one in PROGRAMS]
    assert len(set(names)) == len(names)
    for one in PROGRAMS:
        if one.clone is None or one.script.startswith("own:"):
            assert (OWN / one.script.removeprefix("own:")).is_file(), one.name


def test_ours_is_in_place_of_gloo(tmp_path: Path) -> None:
    found = run(program(tmp_path, "unequal", ALONE + UNEQUAL), OURS, tmp_path / "run", None)
    assert found.problem is None
    assert found.printed == [["narrowgauge"]]


@pytest.mark.slow
def test_a_program_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    child = "import subprocess, sys, time; child = subprocess.Popen(['sleep', '600'])\n"
    text = child + "open('pid', 'w').write(str(child.pid)); time.sleep(600)"
    began = time.monotonic()
    found = run(program(tmp_path, "hangs", text, timeout_s=30.0), GLOO, tmp_path / "run", None)
    assert "still ran after 30 s" in str(found.problem)
    assert time.monotonic() - began < 200
    pid = int((tmp_path / "run" / "work" / "pid").read_text())
    deadline = time.monotonic() + 30.0
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the program's child still runs"
        time.sleep(0.1)


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails_on_ours = "if os.environ['ECOSYSTEM_BACKEND'] != 'gloo': raise ValueError('not here')\n" + UNEQUAL
    wanted = {
        "equal": (TRAIN, 2, "yes"),
        "different": (UNEQUAL, 1, "no"),
        "fails-on-ours": (fails_on_ours, 1, "no"),
        "fails": ("raise ValueError('nowhere')", 1, "set-up failed"),
        "random": (RANDOM, 1, "set-up failed"),
        "silent": ("print('nothing that counts')", 1, "set-up failed"),
    }
    programs = [
        program(tmp_path, name, (ALONE if processes == 1 else START) + text, processes)
        for name, (text, processes, _) in wanted.items()
    ]
    saved = tmp_path / "saved.json"
    assert command.main(programs, ["--save", str(saved), "--keep", str(tmp_path / "runs")]) == 1
    rows = {row["program"]: row for row in json.loads(saved.read_text())["programs"]}
    assert {name: row["equal"] for name, row in rows.items()} == {name: equal for name, (_, _, equal) in wanted.items()}
    assert rows["different"]["why"] == "rank 0, printed value 1: Gloo gloo, ours narrowgauge"
    assert "rank-0: ValueError: not here" in rows["fails-on-ours"]["why"]
    assert "two runs on Gloo differ, too" in rows["random"]["why"]
    assert rows["equal"]["compared"] == "6 printed values, weights and gradients of 3 steps"
    assert command.main([programs[3]], []) == 2
    assert "| fails |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_clone_is_run_in_a_copy_and_named_by_its_commit(tmp_path: Path) -> None:
    clone = tmp_path / "clones" / "mine"
    (clone / "inside").mkdir(parents=True)
    (clone / "inside" / "script.py").write_text(ALONE + "open('left', 'w')\n" + RANDOM)
    git = ["git", "-C", str(clone), "-c", "user.name=x", "-c", "user.email=x"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    cloned = Program(
        "cloned", "script.py", processes=1, clone=Clone("mine", "url", "inside"), prints="^loss",
        prepare=lambda work: (work / "made").touch(),
    )  # fmt: skip
    found = run(cloned, GLOO, tmp_path / "run", tmp_path / "clones")
    assert found.problem is None
    assert {path.name for path in (tmp_path / "run" / "work" / "inside").iterdir()} >= {"left", "made", "script.py"}
    assert [path.name for path in (clone / "inside").iterdir()] == ["script.py"]
    assert len(cloned.version(tmp_path / "clones").split()) == 2
