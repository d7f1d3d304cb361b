"""`launcher plan`: the sample jobs against their inventories, what the plan says, and `launcher init`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.commands.init import starter
from launcher.config import job_file
from launcher.config.job import Job
from launcher.errors import ClusterError, ConfigError
from launcher.inventory.inventory import Rate, Speed
from launcher.planning import describe
from launcher.planning.plan import make
from launcher.record.events import Reported, to_json
from launcher.record.past_speeds import Earlier, earlier, from_reports
from tests.launcher.farms import farm, node
from tests.paths import REPOSITORY

FARMS = sorted(path.stem for path in (REPOSITORY / "configs/inventories").glob("*.json"))
CARD = "GeForce-RTX-4090"


def job(**changes: object) -> Job:
    plain = {
        "name": "demo",
        "entrypoint": "launcher.examples.train_gpt",
        "workers": {"max": 16, "per": "gpu"},
        "cluster": {"address": "auto"},
    }
    return Job.model_validate({**plain, **changes})


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("name", FARMS)
def test_a_sample_gives_what_it_says(name: str) -> None:
    path = f"configs/{name}.yaml"
    text = Path(path).read_text(encoding="utf-8")
    words = ["plan", path, "--inventory", f"configs/inventories/{name}.json"]
    assert f"# Plan:     launcher {' '.join(words)}\n" in text
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    said = text[text.index("predicted step") :].split(" samples/s")[0] + " samples/s"
    assert said in done.output


def test_json_has_ranks_forecast_and_comparisons() -> None:
    words = ["plan", "configs/mixed-16.yaml", "--inventory", "configs/inventories/mixed-16.json", "--json"]
    plan = json.loads(CliRunner().invoke(app, words).output)
    assert [rank["rank"] for rank in plan["ranks"]] == list(range(10))
    assert sum(rank["share"] for rank in plan["ranks"]) == plan["global_batch"] == 512
    figures = plan["forecast"]
    assert figures["step_s"] == pytest.approx(figures["compute_s"] + figures["exposed_s"])
    assert figures["step_at_bound_s"] <= figures["step_s"]
    assert plan["collectives"]["ranks"] == 10
    effects = {one["node"]: one for one in plan["effects"]}
    assert effects["pascal-1"]["throughput_with"] < figures["throughput"]
    assert effects["volta"]["throughput_without"] < figures["throughput"]
    equal, alone = plan["others"]
    assert (equal["what"], equal["ranks"]) == ("all nodes, equal batches", 16)
    assert (alone["what"], alone["ranks"]) == (f"only {CARD}", 8)
    assert {one["what"] for one in plan["what_if"]} >= {"codec bf16", "codec int8", "codec int4"}
    assert plan["planning_s"] < 30


@pytest.mark.parametrize(
    ("accelerators", "kinds"),
    [
        ({}, {CARD, "P100"}),
        ({"only": ["P100"]}, {"P100"}),
        ({"exclude": ["P100"]}, {CARD}),
    ],
)
def test_kinds_may_be_wanted_or_not(accelerators: dict[str, list[str]], kinds: set[str]) -> None:
    machines = farm(node("a", (CARD, 2)), node("b", ("P100", 2)))
    made = make(job(accelerators=accelerators), machines, Earlier(), own=False)
    assert {place.device for place in made.ranks} == kinds or accelerators == {}


def test_without_seconds_the_plan_says_so_and_what_is_missing() -> None:
    machines = farm(node("a", (CARD, 2)), node("b", ("P100", 2)))
    text = describe.as_text(make(job(global_batch=64), machines, Earlier(), own=False))
    assert "no predicted seconds: the time of a sample is not known. Give workload" in text
    assert "communication  not known: give workload.parameters" in text
    assert "4 ranks on 2 nodes" in text


def test_a_batch_without_memory_for_it_is_refused_with_what_there_is() -> None:
    work = {"parameters": "1B", "bytes_per_sample": "1G"}
    with pytest.raises(ClusterError, match=r"batch: +64 samples.*memory for 14 samples in all"):
        make(job(global_batch=64, workload=work), farm(node("a", (CARD, 2))), Earlier(), own=False)
    with pytest.raises(ClusterError, match="its memory does not hold the model and one sample"):
        make(job(workload={"parameters": "7B"}), farm(node("a", (CARD, 2))), Earlier(), own=False)


def test_no_room_names_the_nodes_that_are_not_used() -> None:
    with pytest.raises(ClusterError, match="not used: a, cpu: it has no accelerator"):
        make(job(), farm(node("a")), Earlier(), own=False)
    with pytest.raises(ClusterError, match=r"8 or more workers.*\n.*room: +a for 2 on"):
        make(job(workers={"count": 8, "per": "gpu"}), farm(node("a", (CARD, 2))), Earlier(), own=False)


def test_a_plain_job_is_placed_as_it_says() -> None:
    speed = Speed(single_flops_per_s=Rate(value=1e11, source="measured"))
    machines = farm(node("small", cpus=2), node("large", cpus=8, speed=speed), node("middle", cpus=4))
    made = make(job(workers={"count": 4, "hosts": 2}), machines, Earlier(), own=False)
    assert [place.node for place in made.ranks] == ["large", "large", "middle", "middle"]


def test_workers_that_share_cores_share_their_speed() -> None:
    speed = Speed(single_flops_per_s=Rate(value=1e11, source="measured"))
    work = {"flops_per_sample": "1G", "parameters": "1M"}
    local = job(workers={"count": 4, "hosts": 2}, cluster="local", global_batch=40, workload=work, emulate=[100, 100])
    made = make(local, farm(node("here", cpus=2, speed=speed)), Earlier(), own=True)
    assert made.forecast.compute_s == pytest.approx(10 / (1e11 / 2 * 0.4 / 1e9))
    assert {place.node for place in made.ranks} == {"host-0", "host-1"}
    assert made.forecast.bottleneck is not None
    assert "as the job emulates them" in describe.as_text(made)


def reports(rank: int, samples: float, compute_s: float, tokens: int = 0) -> list[Reported]:
    measured = {"wait_s": 1.0, "num_bytes": 5_000_000, "samples": samples, "compute_s": compute_s}
    return [
        Reported(rank, 10.0 * i, step=10 * i, tokens=tokens, **measured)  # type: ignore[arg-type]
        for i in range(1, 4)
    ]


def test_speeds_are_those_of_the_last_run() -> None:
    found = from_reports([*reports(0, 80, 4.0), *reports(1, 80, 8.0)], {0: "a/cpu", 1: "b/cpu"}, "demo-1")
    assert {place: rate.value for place, rate in found.rates.items()} == {"a/cpu": 20.0, "b/cpu": 10.0}
    assert found.rates["a/cpu"].source == "run demo-1"
    assert found.other_s == pytest.approx((0.5 + 0.1) / 2)  # of a second each step, 0.4 or 0.8 and 0.1 are known
    assert (found.step_bytes, found.rank_samples) == (500_000, 8.0)
    by_tokens = from_reports(reports(0, 0, 4.0, tokens=1600), {0: "a/cpu"}, "demo-1", tokens_per_sample=16)
    assert by_tokens.rates["a/cpu"].value == 25.0
    assert from_reports(reports(0, 0, 4.0), {0: "a/cpu"}, "demo-1") == Earlier()


def test_a_job_that_says_nothing_of_its_work_is_forecast_by_its_last_run() -> None:
    before = from_reports([*reports(0, 80, 4.0), *reports(1, 80, 8.0)], {0: "a/cpu", 1: "b/cpu"}, "demo-1")
    made = make(job(workers={"count": 2, "hosts": 2}), farm(node("a"), node("b")), before, own=False)
    assert made.demand.in_seconds
    assert made.demand.gradient_bytes == 500_000
    assert made.forecast.compute_s == pytest.approx(8 / 10)  # 8 samples each, on the slower node
    assert made.forecast.step_s == pytest.approx(0.8 + before.other_s + made.forecast.exposed_s)


def test_runs_of_a_job_whose_name_only_begins_alike_tell_nothing(tmp_path: Path) -> None:
    seats = {"seats": [{"rank": 0, "node": {"name": "a"}, "device": "cpu"}]}
    for name in ("demo-20260101-120000-aaaa", "demo-probe-20260102-120000-bbbb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text(json.dumps(seats))
        lines = [json.dumps(to_json(report)) for report in reports(0, 80, 4.0)]
        (tmp_path / name / "events.jsonl").write_text("\n".join(lines))
    assert earlier(job(), tmp_path).run == "demo-20260101-120000-aaaa"
    assert earlier(job(name="demo-probe", runs_dir=str(tmp_path))).run == "demo-probe-20260102-120000-bbbb"


def test_a_run_folder_without_a_plan_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "demo-1").mkdir()
    (tmp_path / "demo-1" / "events.jsonl").write_text('{"event": "Repor')
    assert earlier(job(runs_dir=str(tmp_path))) == Earlier()


@pytest.mark.parametrize(("address", "cards"), [(None, 0), (None, 2), ("auto", 2), ("10.0.0.1:6379", 0)])
def test_the_starter_is_a_job(tmp_path: Path, address: str | None, cards: int) -> None:
    machines = farm(node("a", *([(CARD, cards)] if cards else []), cpus=4))
    path = tmp_path / "job.yaml"
    path.write_text(starter(machines, address, str(path)))
    found = job_file.load(path)
    assert found.workers.per == ("gpu" if cards else "cpu")
    assert found.cluster.address == address
    for line in path.read_text().splitlines():  # what is commented out is right, too
        if line.startswith("# ") and ": " in line and line[2].islower():
            path.write_text(path.read_text().replace(line, line[2:]))
    assert job_file.load(path).workload.parameters == 124e6


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("mine")
    done = CliRunner().invoke(app, ["init", str(path)])
    assert isinstance(done.exception, ConfigError)
    assert "the file exists" in str(done.exception)
    assert path.read_text() == "mine"


def test_mistakes_are_told_in_one_message() -> None:
    for words in (
        ["plan", "configs/mixed-16.yaml", "--inventory", "configs/inventories/mixd-16.json"],
        ["plan", "configs/mixed-16.yaml", "--inventory", "configs/mixed-16.yaml"],
        ["inventory", "--address", "nowhere"],
        ["inventory", "--save", "no/such/folder/farm.json"],
        ["init", "no/such/folder/job.yaml"],
    ):
        done = subprocess.run([sys.executable, "-m", "launcher.cli", *words], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert len(done.stderr) > 20
