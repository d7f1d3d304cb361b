"""What a job file may say: each field's name, unit, default, meaning and check in one place."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from typing_extensions import Self

from collectives.options import Options
from launcher.schema import Section

_SET_BY_LAUNCHER = re.compile(
    r"(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|MASTER_ADDR|MASTER_PORT|NARROWGAUGE_.*)"
)
_ADDRESS = re.compile(r"(https?://)?[^\s/]+:\d{1,5}")


class Workers(Section):
    """How many processes, and over how many hosts. `workers: 4` is short for `workers: {count: 4}`."""

    count: int = Field(
        ge=1, le=4096, description="Number of worker processes, one for each rank. With max instead: at most that many."
    )
    min: int | None = Field(default=None, ge=1, description="The fewest workers that will do. null: count.")
    max: int | None = Field(
        default=None, ge=1, le=4096, description="The most workers. As many are taken as make the job faster."
    )
    per: Literal["cpu", "gpu"] = Field(
        default="cpu", description="What each worker gets for itself: CPU cores, or those and an accelerator."
    )
    hosts: int | None = Field(
        default=None,
        ge=1,
        description="Hosts to spread the workers over, in even blocks of ranks. On the local cluster they are "
        "emulated, so that ranks of different hosts talk over TCP. null: one host, or as few cluster nodes as "
        "have room.",
    )
    cpus: int = Field(default=1, ge=1, description="CPU cores that a worker counts for, and threads that it may use.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"count": value}
        if not isinstance(value, dict | cls):
            raise ValueError("a whole number, or a mapping with count, hosts, cpus")
        if isinstance(value, dict) and "max" in value and "count" not in value:
            return {"count": value["max"], **value, "min": value.get("min", 1)}
        return value

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.least <= self.count <= (self.max or self.count):
            raise ValueError(f"min <= count <= max; got min {self.min}, count {self.count}, max {self.max}")
        return self

    @property
    def least(self) -> int:
        """The fewest workers that will do."""
        return self.count if self.min is None else self.min

    @field_validator("hosts")
    @classmethod
    def _no_empty_host(cls, hosts: int | None, info: ValidationInfo) -> int | None:
        if hosts is not None and hosts > info.data.get("count", hosts):
            raise ValueError(f"at most as many hosts as workers, {info.data['count']}")
        return hosts


class Cluster(Section):
    """Where the workers run. `cluster: local` is short for `cluster: {address: null}`."""

    address: str | None = Field(
        default=None,
        min_length=1,
        description='Address of a running Ray cluster: "host:port" of its head, "http://host:port" of its dashboard or '
        '"auto". The run outlives the terminal there. null: a Ray of its own on this machine, started for the run and '
        "ended with it.",
    )
    exclude: list[str] = Field(
        default=[],
        description="What of the working directory doesn't travel to the cluster: patterns of names or of paths from "
        'there, such as "data" or "*.bin". Version control, virtual environments, caches and runs never do.',
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {} if value == "local" else value

    @field_validator("address")
    @classmethod
    def _with_port(cls, address: str | None) -> str | None:
        if address not in (None, "auto") and not _ADDRESS.fullmatch(address):
            raise ValueError('"host:port", such as 10.0.0.1:6379, "http://host:8265" of a dashboard, or "auto"')
        return address


Codec = Literal["none", "narrow-bf16", "bf16", "narrow-int8", "int8", "narrow-int4", "int4", "low-rank", "auto"]


class Collectives(Section):
    """How gradients travel; the defaults are those of `collectives.Options`."""

    backend: Literal["narrowgauge", "gloo"] = Field(
        default="narrowgauge", description="narrowgauge: the compiled engine. gloo: torch's own Gloo."
    )
    codec: Codec = Field(
        default="none",
        description="How gradients of DDP models travel over network links, as `collectives.attach` says. "
        "narrow-...: over narrow links only. auto: the mildest that hides behind the backward pass. "
        "low-rank: PowerSGD.",
    )
    streams: int | Literal["auto"] = Field(
        default="auto",
        description='TCP connections for each pair of peers. "auto": as many as the links\' rate and latency need.',
    )
    interface: str | None = Field(
        default=Options.interface,
        description="Network interface of every node that the workers' traffic takes, or several with commas between, "
        "over which it is spread. null: the one that Ray uses.",
    )
    slice_bytes: int = Field(default=Options.slice_bytes, description="Size of the pipelined unit, in bytes.")
    timeout_s: float | None = Field(
        default=Options.timeout_s, description="Seconds without progress that end an op. null: torch's timeout."
    )
    topology: str | None = Field(
        default=Options.topology,
        description="Path of a topology JSON file, such as `launcher probe --save` writes. null: the links between "
        "machines are measured once and remembered.",
    )

    trace: bool = Field(
        default=False,
        description="Whether each rank writes a trace of its ops, slices and waits into the run's folder traces, for "
        "ui.perfetto.dev.",
    )

    @field_validator("streams", "slice_bytes", "timeout_s", "interface")
    @classmethod
    def _as_the_engine_says(cls, value: Any, info: ValidationInfo) -> Any:
        Options(**{str(info.field_name): value})
        return value


_QUANTITY = re.compile(r"([0-9.]+)\s*([kMGBT]?)")
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


class Accelerators(Section):
    """Which kinds of accelerator may carry workers, by the names that `launcher inventory` shows."""

    only: list[str] | None = Field(default=None, min_length=1, description="These and no others. null: all.")
    exclude: list[str] = Field(default=[], description="All but these.")


class Workload(Section):
    """What a step costs, so that it can be predicted before anything has run. Numbers may be written as 124M."""

    parameters: float | None = Field(default=None, gt=0, description="Parameters of the model.")
    gradient_bytes: float | None = Field(
        default=None, gt=0, description="Bytes that are summed over the ranks each step. null: 4 for each parameter."
    )
    flops_per_sample: float | None = Field(
        default=None,
        gt=0,
        description="Operations of forward and backward for one sample. null: 6 for each parameter and token.",
    )
    tokens_per_sample: float | None = Field(
        default=None, gt=0, description="Tokens of a sample. null: the model has none, or flops_per_sample says it all."
    )
    bytes_per_sample: float = Field(default=0, ge=0, description="Memory that each sample of a rank's batch takes.")
    bytes_per_worker: float | None = Field(
        default=None,
        ge=0,
        description="Memory that a worker takes besides. null: 16 bytes for each parameter (weight, gradient, Adam).",
    )
    efficiency: float = Field(default=0.4, gt=0, le=1, description="Part of the device's peak rate that training gets.")
    precision: Literal["half", "single"] | None = Field(
        default=None, description="half: fp16 or bf16. null: half on accelerators, single on CPUs."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _quantity(cls, value: Any, info: ValidationInfo) -> Any:
        found = _QUANTITY.fullmatch(value) if isinstance(value, str) and info.field_name != "precision" else None
        return float(found[1]) * _FACTORS[found[2]] if found and found[1].count(".") <= 1 else value


class Checkpoint(Section):
    """What `launcher.checkpoint` does where the script doesn't say it."""

    every_steps: int | None = Field(
        default=None, ge=1, description="Steps between checkpoints. null: only where the script saves by itself."
    )
    keep: int = Field(default=3, ge=1, description="How many checkpoints stay; older ones are removed.")


class Job(Section):
    """Everything that a job file may say. Relative paths are relative to the working directory of `launcher submit`."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Name of the run; its folder starts with it."
    )
    entrypoint: str = Field(
        min_length=1,
        description="What every worker runs: a file (train.py), a module as under `python -m` (package.train) or a "
        "function without arguments (package.train:main).",
    )
    args: list[str] = Field(
        default=[],
        description="Command line of the entrypoint. A mapping is written out as flags: {steps: 20, fast: true, "
        "slow: false} is --steps 20 --fast.",
    )
    env: dict[str, str] = Field(default={}, description="Environment variables of the workers.")
    workers: Workers
    accelerators: Accelerators = Accelerators()
    global_batch: int | None = Field(
        default=None,
        ge=1,
        description="Samples of all ranks together in each step, at least one for each, shared out by their speeds; "
        "`progress.global_batch` gives it to the script. null: the script decides.",
    )
    workload: Workload = Workload()
    cluster: Cluster = Cluster()
    rebalance: bool = Field(
        default=True,
        description="Whether `collectives.Shares` follow the speeds that are measured while training goes on. false "
        "keeps the first ones, so that a run that is resumed is the same bit for bit.",
    )
    checkpoint: Checkpoint = Checkpoint()
    retries: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="How many times a run that failed is started again, from its newest checkpoint. A script that "
        "fails by itself before its first step is not.",
    )
    collectives: Collectives = Collectives()
    emulate: list[float] | None = Field(
        default=None,
        min_length=1,
        description="Mbit/s of each emulated host's link on the local cluster, in the order of the hosts: the kernel "
        "paces the workers' connections. An approximation that needs no root; `launcher lab` shapes real links. "
        "null: no limit.",
    )
    timeout_s: float | None = Field(
        default=None, gt=0, description="Seconds after which a run is stopped as failed. null: no limit."
    )
    tensorboard: bool = Field(
        default=False,
        description="Whether to write scalars into the run's folder tensorboard, for `tensorboard --logdir runs`. "
        "Needs narrowgauge[tensorboard].",
    )
    runs_dir: str = Field(default="runs", min_length=1, description="Folder that gets one folder for each run.")

    @field_validator("emulate", mode="after")
    @classmethod
    def _one_for_each_host(cls, rates: list[float] | None, info: ValidationInfo) -> list[float] | None:
        if rates is None:
            return None
        workers, cluster = info.data.get("workers"), info.data.get("cluster")
        if cluster is not None and cluster.address is not None:
            raise ValueError("nothing: the links of a real cluster are as they are")
        if workers is not None and len(rates) != (workers.hosts or 1):
            raise ValueError(f"one number for each of workers.hosts, {workers.hosts or 1}")
        if min(rates) <= 0:
            raise ValueError("numbers of more than 0, in Mbit/s")
        return rates

    @field_validator("global_batch")
    @classmethod
    def _one_sample_each(cls, samples: int | None, info: ValidationInfo) -> int | None:
        workers = info.data.get("workers")
        if samples is not None and workers is not None and samples < workers.count:
            raise ValueError(f"at least one sample for each of the {workers.count} workers")
        return samples

    @field_validator("args", mode="before")
    @classmethod
    def _as_command_line(cls, args: Any) -> Any:
        if isinstance(args, dict):
            return [word for name, value in args.items() for word in _flag(name, value)]
        if isinstance(args, list):
            return [_word(value, f"argument {index + 1}") for index, value in enumerate(args)]
        raise ValueError("a list of words or a mapping of flags")

    @field_validator("env", mode="before")
    @classmethod
    def _as_texts(cls, env: Any) -> Any:
        if not isinstance(env, dict):
            return env
        for name in env:
            if _SET_BY_LAUNCHER.fullmatch(str(name)):
                raise ValueError(f"no {name}: the launcher sets it for each worker")
        return {name: str(value) if type(value) in (int, float) else value for name, value in env.items()}


def _flag(name: Any, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{name}"]
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *(_word(item, f"flag {name!r}") for item in values)]


def _word(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"text or a number for {where}, not {described(value)}")
    return str(value)


def is_file(entrypoint: str) -> bool:
    """Whether an entrypoint is a path; otherwise it is `module` or `module:function`."""
    return entrypoint.endswith(".py") or "/" in entrypoint or ".py:" in entrypoint


def described(value: Any) -> str:
    """A value of a job file and its kind, in words: "'four' (text)"."""
    if value is None:
        return "nothing (null)"
    kinds = {bool: "a truth value", int: "a whole number", float: "a number", str: "text", list: "a list"}
    return f"{value!r} ({kinds.get(type(value), 'a mapping')})"
