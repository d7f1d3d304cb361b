"""Schema of the job file: each field's name, unit, default, meaning and check in one place."""

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
# A description is what `launcher schema`, the error messages and the documentation show. It states the unit, and what
# null means. A `_short` validator expands the short form of a section before the fields are checked.


class Workers(Section):
    """Worker processes: how many, on how many hosts. `workers: 4` is short for `workers: {count: 4}`."""

    count: int = Field(
        ge=1,
        le=4096,
        description="Number of worker processes, one per rank. May be left out if max is given; it is then max.",
    )
    min: int | None = Field(
        default=None, ge=1, description="Smallest acceptable number of workers. null: count, or 1 if only max is given."
    )
    max: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Largest number of workers. The launcher uses as many as reduce the predicted step time. "
        "null: exactly count workers.",
    )
    per: Literal["cpu", "gpu"] = Field(
        default="cpu", description="What each worker reserves: CPU cores only, or CPU cores and one accelerator."
    )
    hosts: int | None = Field(
        default=None,
        ge=1,
        description="Number of hosts to spread the workers over, in even blocks of ranks. The local cluster emulates "
        "them: ranks of different hosts exchange data over TCP. null: one host locally, or as few cluster nodes as "
        "have room.",
    )
    cpus: int = Field(
        default=1, ge=1, description="CPU cores reserved for each worker, and the number of threads it may use."
    )

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
    """The Ray cluster that the workers run on. `cluster: local` is short for `cluster: {address: null}`."""

    address: str | None = Field(
        default=None,
        min_length=1,
        description='Address of a running Ray cluster: "host:port" of its head, "http://host:port" of its dashboard, '
        "or "
        '"auto" for the one that Ray finds. A run on it continues if the terminal closes. null: a private Ray on this '
        "machine, started for the run and stopped after it.",
    )
    exclude: list[str] = Field(
        default=[],
        description="Files of the working directory that are not uploaded to the cluster: patterns of names or of "
        'relative paths, such as "data" or "*.bin". Version control, virtual environments, caches and the runs folder '
        "are never uploaded.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "local":
            raise ValueError(
                f'local, or a mapping; a running cluster is named by its address: cluster: {{address: "{value}"}}, or '
                f"--set cluster.address={value}"
            )
        return {} if value == "local" else value

    @field_validator("address")
    @classmethod
    def _with_port(cls, address: str | None) -> str | None:
        if address not in (None, "auto") and not _ADDRESS.fullmatch(address):
            raise ValueError('"host:port", such as 10.0.0.1:6379, "http://host:8265" of a dashboard, or "auto"')
        return address


Codec = Literal["none", "narrow-bf16", "bf16", "narrow-int8", "int8", "narrow-int4", "int4", "low-rank", "auto"]


class Collectives(Section):
    """How gradients are exchanged. The defaults are those of `collectives.Options`."""

    backend: Literal["narrowgauge", "gloo"] = Field(
        default="narrowgauge",
        description="Backend of torch.distributed. narrowgauge: the compiled engine. gloo: torch's Gloo.",
    )
    codec: Codec = Field(
        default="none",
        description="Compression of DDP gradients on network links, as of `collectives.attach`. narrow-...: on narrow "
        "links only. low-rank: PowerSGD. auto: the codec with the least loss whose communication is hidden behind "
        "the backward pass.",
    )
    streams: int | Literal["auto"] = Field(
        default="auto",
        description='TCP connections between each pair of ranks. "auto": derived from the rate and latency of the '
        "link.",
    )
    interface: str | None = Field(
        default=Options.interface,
        description="Network interface for the workers' traffic, by the same name on every node, such as eth0. "
        "Several, "
        "separated by commas, share the traffic. null: the interface that Ray uses.",
    )
    slice_bytes: int = Field(
        default=Options.slice_bytes, description="Bytes of a slice, the unit in which messages are pipelined."
    )
    timeout_s: float | None = Field(
        default=Options.timeout_s,
        description="Seconds without progress after which a collective fails; ranks wait at least 20 for each other to "
        "come. null: torch's timeout.",
    )
    hang_report_s: float = Field(
        default=Options.hang_report_s,
        description="Seconds without progress after which rank 0 logs which ranks have not joined a collective, and "
        "where they are; at the latest after half the timeout. 0: never.",
    )
    topology: str | None = Field(
        default=Options.topology,
        description="Path of a topology file (JSON), as `launcher probe --save` writes it. null: the links are "
        "measured "
        "once and cached.",
    )
    trace: bool = Field(
        default=False,
        description="Whether each rank writes a trace of its collectives, slices and waits to the folder traces of the "
        "run, for ui.perfetto.dev.",
    )

    @field_validator("streams", "slice_bytes", "timeout_s", "hang_report_s", "interface")
    @classmethod
    def _accepted_by_the_engine(cls, value: Any, info: ValidationInfo) -> Any:
        Options(**{str(info.field_name): value})
        return value


_QUANTITY = re.compile(r"([0-9.]+)\s*([kMGBT]?)")
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


class Accelerators(Section):
    """Kinds of accelerator that workers may run on, by the names that `launcher inventory` shows."""

    only: list[str] | None = Field(default=None, min_length=1, description="Kinds to use, and no others. null: all.")
    exclude: list[str] = Field(default=[], description="Kinds not to use.")


class Workload(Section):
    """Cost of a training step, for predictions before the first run. Numbers may have a suffix, as in 124M.

    Suffixes are decimal: k, M, G (or B, as in 1.3B parameters) and T.
    """

    parameters: float | None = Field(
        default=None, gt=0, description="Number of parameters of the model. null: unknown."
    )
    gradient_bytes: float | None = Field(
        default=None,
        gt=0,
        description="Bytes of gradient that the ranks all-reduce in each step. null: 4 per parameter.",
    )
    flops_per_sample: float | None = Field(
        default=None,
        gt=0,
        description="Floating-point operations of the forward and backward pass of one sample. null: 6 per parameter "
        "and "
        "token.",
    )
    tokens_per_sample: float | None = Field(
        default=None,
        gt=0,
        description="Tokens in a sample, for the default of flops_per_sample. null: 1.",
    )
    bytes_per_sample: float = Field(
        default=0,
        ge=0,
        description="Bytes of memory for each sample of a rank's batch. 0: memory does not limit the batch.",
    )
    bytes_per_worker: float | None = Field(
        default=None,
        ge=0,
        description="Bytes of memory of a worker without its batch. null: 16 per parameter (weight, gradient and "
        "Adam).",
    )
    efficiency: float = Field(
        default=0.4, gt=0, le=1, description="Fraction of the device's peak FLOP/s that training reaches, 0 to 1."
    )
    precision: Literal["half", "single"] | None = Field(
        default=None,
        description="Arithmetic of the model. half: fp16 or bf16. single: fp32. null: half on accelerators, single on "
        "CPUs.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _quantity(cls, value: Any, info: ValidationInfo) -> Any:
        found = _QUANTITY.fullmatch(value) if isinstance(value, str) and info.field_name != "precision" else None
        return float(found[1]) * _FACTORS[found[2]] if found and found[1].count(".") <= 1 else value


class Checkpoint(Section):
    """Defaults of `launcher.checkpoint.Checkpoints`, for arguments that the script leaves out."""

    every_steps: int | None = Field(
        default=None, ge=1, description="Steps between checkpoints. null: only when the script calls save itself."
    )
    keep: int = Field(default=3, ge=1, description="Number of checkpoints to keep; older ones are removed.")


class Job(Section):
    """A job file. Relative paths are relative to the working directory of `launcher submit`."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name of the job; the folder of each run starts with it.",
    )
    entrypoint: str = Field(
        min_length=1,
        description="Program that every worker runs: a file (train.py), a module as for `python -m` (package.train) "
        "or a "
        "function without arguments (package.train:main).",
    )
    args: list[str] = Field(
        default=[],
        description="Command-line arguments of the entrypoint. A mapping becomes flags: {steps: 20, fast: true, "
        "slow: false} becomes --steps 20 --fast.",
    )
    env: dict[str, str] = Field(
        default={}, description="Environment variables of the workers, added to the environment of their node."
    )
    workers: Workers = Field(
        description="How many processes, and on how many hosts. `workers: 4` is short for `workers: {count: 4}`."
    )
    accelerators: Accelerators = Field(
        default=Accelerators(),
        description="Kinds of accelerator that workers may run on. Left out: all. Used with workers.per: gpu.",
    )
    global_batch: int | None = Field(
        default=None,
        ge=1,
        description="Samples per step over all ranks, at least one per rank. Ranks get shares in proportion to their "
        "speeds; the script reads it by `progress.global_batch`. null: the script decides.",
    )
    workload: Workload = Field(
        default=Workload(),
        description="Cost of a training step, for predictions before the first run. Left out: predictions rest on "
        "earlier runs.",
    )
    cluster: Cluster = Field(
        default=Cluster(),
        description="The Ray cluster that the workers run on. `cluster: local`, or left out: this machine.",
    )
    rebalance: bool = Field(
        default=True,
        description="Whether `collectives.Shares` adjusts the ranks' shares of the batch to the speeds measured during "
        "training. false: the first shares stay, so that a resumed run is bitwise reproducible.",
    )
    checkpoint: Checkpoint = Field(
        default=Checkpoint(), description="When `launcher.checkpoint` saves, for scripts that use it."
    )
    retries: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="How many times a failed run is restarted, from its newest checkpoint. A run whose script fails "
        "before the first step is not restarted.",
    )
    collectives: Collectives = Field(
        default=Collectives(), description="How gradients are exchanged: backend, codec, interface, topology."
    )
    emulate: list[float] | None = Field(
        default=None,
        min_length=1,
        description="Rate of each emulated host's link on the local cluster, in Mbit/s, in the order of the hosts. The "
        "kernel paces the workers' connections: an approximation that needs no root; `launcher lab` shapes real links. "
        "null: no limit.",
    )
    timeout_s: float | None = Field(
        default=None, gt=0, description="Seconds after which a run is stopped and counts as failed. null: no limit."
    )
    tensorboard: bool = Field(
        default=False,
        description="Whether to write scalars to the folder tensorboard of the run, for `tensorboard --logdir runs`. "
        "Needs the extra narrowgauge[tensorboard].",
    )
    runs_dir: str = Field(
        default="runs", min_length=1, description="Folder in which each run gets a folder of its own."
    )

    @field_validator("emulate", mode="after")
    @classmethod
    def _one_for_each_host(cls, rates: list[float] | None, info: ValidationInfo) -> list[float] | None:
        if rates is None:
            return None
        workers, cluster = info.data.get("workers"), info.data.get("cluster")
        if cluster is not None and cluster.address is not None:
            raise ValueError("null: only the local cluster emulates links")
        if workers is not None and len(rates) != (workers.hosts or 1):
            raise ValueError(f"one number for each of workers.hosts, {workers.hosts or 1}")
        if min(rates) <= 0:
            raise ValueError("positive numbers, in Mbit/s")
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
        raise ValueError(f"text or a number for {where}, not {describe_value(value)}")
    return str(value)


def is_file(entrypoint: str) -> bool:
    """Whether an entrypoint is a path; otherwise it is `module` or `module:function`."""
    return entrypoint.endswith(".py") or "/" in entrypoint or ".py:" in entrypoint


def describe_value(value: Any) -> str:
    """A value from a file, with its type in words: "'four' (text)"."""
    if value is None:
        return "nothing (null)"
    kinds = {bool: "a truth value", int: "a whole number", float: "a number", str: "text", list: "a list"}
    return f"{value!r} ({kinds.get(type(value), 'a mapping')})"
