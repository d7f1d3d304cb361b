"""Job files, good and bad. A bad one is a row: the file, where the mistake is, words that the error must have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest

from collectives.options import CODECS
from launcher.config import job_file
from launcher.config.job import Codec
from launcher.config.preflight import LocalMachine
from launcher.errors import ConfigError
from tests.paths import REPOSITORY

BIG = LocalMachine(cores=64, memory_bytes=256 * 1024**3)
SMALL = LocalMachine(cores=2, memory_bytes=8 * 1024**3)
GOOD = "name: demo\nentrypoint: launcher.examples.train_gpt\nworkers: 4\n"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


BAD = {
    "unknown key": (GOOD + "wrokers: 2\n", 4, ["unknown key 'wrokers'", "nearest: workers"]),
    "unknown key below": (
        GOOD + "collectives:\n  bakend: gloo\n",
        5,
        ["unknown key 'bakend' in 'collectives'", "nearest: backend"],
    ),
    "text for a number": (
        GOOD.replace("workers: 4", "workers: {count: four}"),
        3,
        ["'workers.count'", "'four' (text)", "a whole number"],
    ),
    "text for workers": (GOOD.replace("4", "many"), 3, ["'workers'", "'many' (text)", "mapping"]),
    "no workers": (
        GOOD.replace("workers: 4", "workers: 0"),
        3,
        ["'workers.count'", "got:     0", "greater than or equal to 1"],
    ),
    "more hosts than workers": (
        GOOD.replace("workers: 4", "workers:\n  count: 2\n  hosts: 3"),
        5,
        ["'workers.hosts'", "at most as many hosts as workers, 2"],
    ),
    "missing key": ("name: demo\nworkers: 2\n", 1, ["key 'entrypoint' is missing", "train.py"]),
    "missing count": (GOOD.replace("workers: 4", "workers: {hosts: 2}"), 3, ["key 'workers.count' is missing"]),
    "bad choice": (
        GOOD + "collectives: {backend: narrowguage}\n",
        4,
        ["'collectives.backend'", "narrowguage", "nearest: narrowgauge"],
    ),
    "unknown codec": (
        GOOD + "collectives: {codec: int7}\n",
        4,
        ["'collectives.codec'", "'int7'", "narrow-int8", "int8", "int4", "auto"],
    ),
    "too many streams": (GOOD + "collectives: {streams: 100}\n", 4, ["'collectives.streams'", "100", "1 to 64"]),
    "odd slice": (GOOD + "collectives: {slice_bytes: 1000}\n", 4, ["'collectives.slice_bytes'", "multiple of 64"]),
    "negative timeout": (GOOD + "timeout_s: -1\n", 4, ["'timeout_s'", "-1", "greater than 0"]),
    "bad name": (GOOD.replace("demo", "my job"), 1, ["'name'", "my job", "letters, digits"]),
    "tab": (GOOD + "collectives:\n\tbackend: gloo\n", 5, ["a tab where spaces are wanted"]),
    "open bracket": (GOOD + "args: [--steps, 20\n", 5, ["not YAML"]),
    "key twice": (GOOD + "name: other\n", 4, ["duplicate key 'name'", "first in line 1"]),
    "a list": ("- a\n- b\n", 1, ["not a job", "keys: name, entrypoint"]),
    "empty": ("", None, ["is missing"]),
    "empty section": (GOOD + "collectives:\n", 4, ["'collectives'", "nothing (null)"]),
    "missing script": (
        GOOD.replace("launcher.examples.train_gpt", "launcher/examples/train_gtp.py"),
        2,
        ["no script", "nearest: launcher/examples/train_gpt.py"],
    ),
    "missing folder": (GOOD.replace("launcher.examples.train_gpt", "nowhere/train.py"), 2, ["no script", "nowhere"]),
    "missing module": (GOOD.replace("train_gpt", "train_gtp"), 2, ["no module 'launcher.examples.train_gtp'"]),
    "missing topology": (GOOD + "collectives: {topology: farm.json}\n", 4, ["no topology file 'farm.json'"]),
    "too many workers": (
        GOOD.replace("4", "9"),
        3,
        ["more workers than this machine has room for", "9 workers", "at most 8"],
    ),
    "nested argument": (GOOD + "args: {model: {width: 3}}\n", 4, ["'args'", "flag 'model'"]),
    "a flag in a list": (GOOD + "args: [true]\n", 4, ["'args'", "argument 1", "a truth value"]),
    "variable of the launcher": (GOOD + "env: {RANK: 0}\n", 4, ["'env'", "no RANK: the launcher sets it"]),
    "truth value in env": (GOOD + "env:\n  FAST: yes\n", 5, ["'env.FAST'", "True (a truth value)", "text"]),
    "misspelled required key": (
        GOOD.replace("workers: 4", "worker: 2"),
        3,
        ["unknown key 'worker'", "nearest: workers"],
    ),
    "misspelled required key below": (
        GOOD.replace("workers: 4", "workers: {cout: 2}"),
        3,
        ["unknown key 'cout' in 'workers'", "nearest: count"],
    ),
    "a word for workers": (
        GOOD.replace("4", "two"),
        3,
        ["'two' (text)", "wanted:  a whole number, or a mapping with count, hosts, cpus"],
    ),
    "missing function": (
        GOOD.replace("train_gpt", "train_gpt:mian"),
        2,
        ["no function 'mian' in module 'launcher.examples.train_gpt'", "nearest: main"],
    ),
    "function of a file": (
        GOOD.replace("launcher.examples.train_gpt", "launcher/examples/train_gpt.py:main"),
        2,
        ["a function can be named in a module, not in a file", "nearest: launcher.examples.train_gpt:main"],
    ),
    "address without a port": (GOOD + "cluster: {address: '10.0.0.1'}\n", 4, ["'cluster.address'", "host:port"]),
    "a tag on a list": (
        GOOD + "args: !!python/object/apply:os.system [echo]\n",
        4,
        ["a tag that is not allowed in job files", "got:     !!python/object/apply:os.system"],
    ),
    "a tag on a text": (GOOD + "env: {A: !secret x}\n", 4, ["a tag that is not allowed in job files", "!secret"]),
    "no folder for runs": (
        GOOD + "runs_dir: /proc/nope\n",
        4,
        ["cannot create the folder for runs", "/proc/nope (No such file"],
    ),
    "a file for runs": (
        GOOD + "runs_dir: pyproject.toml/runs\n",
        4,
        ["cannot create the folder for runs", "Not a directory"],
    ),
    "a batch of less than one each": (
        GOOD + "global_batch: 3\n",
        4,
        ["'global_batch'", "got:     3", "at least one sample for each of the 4 workers"],
    ),
    "no checkpoint kept": (GOOD + "checkpoint: {keep: 0}\n", 4, ["'checkpoint.keep'", "greater than or equal to 1"]),
    "an unknown key of checkpoints": (
        GOOD + "checkpoint: {every: 5}\n",
        4,
        ["unknown key 'every' in 'checkpoint'", "nearest: every_steps"],
    ),
    "retries below 0": (GOOD + "retries: -1\n", 4, ["'retries'", "greater than or equal to 0"]),
    "bad cluster": (GOOD + "cluster: remote\n", 4, ["'cluster'", "'remote' (text)"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, case: str) -> None:
    text, line, words = BAD[case]
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        job_file.load(path, machine=SMALL)
    message = str(caught.value)
    assert caught.value.place.source == str(path)
    if line is not None:
        assert caught.value.place.line == line, message
    for word in words:
        assert word in message
    assert "pydantic" not in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"no such file(.|\n)*nearest: .*job\.yaml"):
        job_file.load(tmp_path / "jobs.yaml")


@pytest.mark.parametrize("content", [GOOD.encode("utf-16"), GOOD.encode("utf-16-le"), b"\x00\xff\xfe"])
def test_a_file_that_is_not_utf_8(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "job.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match="save it as UTF-8"):
        job_file.load(tmp_path / "job.yaml")


def test_a_misspelled_key_is_one_mistake(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("workers", "wrkers"))
    with pytest.raises(ConfigError) as caught:
        job_file.load(path, machine=BIG)
    assert caught.value.others == 0


@pytest.mark.parametrize("source", ["from os.path import *\n", "if True:\n    main = print\n", "def (\n"])
def test_a_function_that_may_be_there_passes(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "may_be_there.py").write_text(source)
    job_file.load(write(tmp_path, GOOD.replace("launcher.examples.train_gpt", "may_be_there:main")), machine=BIG)


def test_a_folder_for_runs_is_not_made_by_looking(tmp_path: Path) -> None:
    job_file.load(write(tmp_path, GOOD + f"runs_dir: {tmp_path}/a/b\n"), machine=BIG)
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_the_first_mistake_is_told_and_the_others_counted(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "colour: red\nsize: large\n")
    with pytest.raises(ConfigError, match=r"line 4(.|\n)*'colour'(.|\n)*and 1 more error") as caught:
        job_file.load(path, machine=BIG)
    assert caught.value.others == 1


def test_defaults_and_short_forms(tmp_path: Path) -> None:
    job = job_file.load(
        write(tmp_path, GOOD + "cluster: local\nargs: {steps: 20, fast: true, slow: false, ids: [1, 2]}\n")
    )
    assert (job.workers.count, job.workers.hosts, job.workers.cpus) == (4, None, 1)
    assert job.cluster.address is None
    assert job.collectives.backend == "narrowgauge"
    assert job.args == ["--steps", "20", "--fast", "--ids", "1", "2"]


def test_the_resolved_file_reads_back_to_the_same_job(tmp_path: Path) -> None:
    text = GOOD + "args: [--steps, 3]\nenv: {A: 1, B: x}\ncluster: {address: auto}\ncollectives: {timeout_s: 5}\n"
    job = job_file.load(write(tmp_path, text))
    assert job_file.load(write(tmp_path, job_file.to_yaml(job))) == job
    assert job.env == {"A": "1", "B": "x"}
    assert job.collectives.timeout_s == 5


def test_a_cluster_by_address_may_have_more_workers_than_this_machine(tmp_path: Path) -> None:
    text = GOOD.replace("4", "100") + 'cluster: {address: "10.0.0.1:6379"}\n'
    assert job_file.load(write(tmp_path, text), machine=SMALL).workers.count == 100


@pytest.mark.parametrize(
    ("override", "check"),
    [
        ("workers=2", lambda job: job.workers.count == 2),
        ("workers.hosts=2", lambda job: (job.workers.count, job.workers.hosts) == (4, 2)),
        ("collectives.backend=gloo", lambda job: job.collectives.backend == "gloo"),
        ("args.steps=7", lambda job: job.args == ["--steps", "7"]),
        ("timeout_s=2.5", lambda job: job.timeout_s == 2.5),
    ],
)
def test_overrides(tmp_path: Path, override: str, check: object) -> None:
    assert check(job_file.load(write(tmp_path, GOOD), [override], machine=BIG))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("workers", "not an override"),
        ("workers.cuont=2", "unknown key 'cuont'"),
        ("workers.count=many", "'many' (text)"),
        ("workers=[", "not YAML"),
        ("nosuch.key=1", "unknown key 'nosuch'"),
        ("nosuch.deeper.key=1", "unknown key 'nosuch'"),
        ("checkpoint.nosuch=1", "unknown key 'nosuch' in 'checkpoint'"),
        ("cluster=10.0.0.1:6379", "--set cluster.address=10.0.0.1:6379"),
    ],
)
def test_a_bad_override_is_told_as_such(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job_file.load(write(tmp_path, GOOD), [override], machine=BIG)
    assert str(caught.value).startswith(f"--set {override}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("path", sorted(Path(REPOSITORY, "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_samples_are_right_and_open_with_what_they_are_for(path: Path) -> None:
    job_file.load(path, machine=BIG)
    comment = path.read_text().split("\n\n")[0]
    for word in ("# Purpose:", f"# Run:      launcher submit configs/{path.name}", "# Expect:"):
        assert word in comment


def test_tensorboard_without_its_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = write(
        tmp_path, GOOD.replace("launcher.examples.train_gpt", "launcher/examples/train_gpt.py") + "tensorboard: true\n"
    )
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(ConfigError) as error:
        job_file.load(job, machine=BIG)
    assert "line 4" in str(error.value)
    assert "the package tensorboard is not installed here" in str(error.value)
    assert "pip install 'narrowgauge[tensorboard]'" in str(error.value)
    job_file.load(job, ["tensorboard=false"], machine=BIG)


def test_on_a_cluster_the_script_must_lie_where_it_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "train.py").write_text("")
    (tmp_path / "inside" / "job.yaml").write_text(
        "name: demo\nworkers: 1\nentrypoint: ../train.py\ncluster: {address: '10.0.0.1:6379'}\n"
    )
    monkeypatch.chdir(tmp_path / "inside")
    with pytest.raises(ConfigError, match=r"line 3, .*outside the working directory") as caught:
        job_file.load(Path("job.yaml"))
    assert f"which is {tmp_path / 'train.py'}" in str(caught.value)
    assert job_file.load(Path("job.yaml"), [f"entrypoint={tmp_path / 'train.py'}"]).workers.count == 1


def test_a_job_may_have_every_codec_that_there_is() -> None:
    assert get_args(Codec) == CODECS
