"""The results as a table for people and as JSON for programs. `collectives.bench` defines the columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Any

GB = 1e9


@dataclass(frozen=True)
class BenchRow:
    """One collective with one size, in seconds, bytes and bytes per second. None: not known, or not measured.

    Attributes:
        bus_factor: busbw over algbw.
        plan: name of our forest.
        predicted_s: seconds that the plan predicts.
        cpu_s: processor time of one call, all ranks together.
        rounds, calls: the time is the median of so many rounds of so many calls.
        gloo_time_s and so on: the same for Gloo.
    """

    collective: str
    num_bytes: int
    time_s: float
    bus_factor: float
    wrong: int
    memory_bytes: int
    cpu_s: float
    rounds: int
    calls: int
    plan: str | None
    predicted_s: float | None
    limit_s: float | None
    gloo_time_s: float | None
    gloo_wrong: int | None
    gloo_memory_bytes: int | None
    gloo_cpu_s: float | None
    gloo_calls: int | None

    @property
    def algbw(self) -> float:
        return self.num_bytes / self.time_s

    @property
    def busbw(self) -> float:
        return self.algbw * self.bus_factor

    @property
    def of_limit(self) -> float | None:
        """The limit's seconds over ours: the fraction of the possible speed."""
        return None if self.limit_s is None else self.limit_s / self.time_s

    @property
    def prediction_error(self) -> float | None:
        """Relative: 0.1 means that the plan predicted 10 % more time than the call took."""
        return None if self.predicted_s is None else self.predicted_s / self.time_s - 1

    @property
    def cpu_s_per_gb(self) -> float:
        return self.cpu_s / self.num_bytes * GB

    @property
    def gloo_cpu_s_per_gb(self) -> float | None:
        return None if self.gloo_cpu_s is None else self.gloo_cpu_s / self.num_bytes * GB

    @property
    def ratio(self) -> float | None:
        """Gloo's seconds over ours."""
        return None if self.gloo_time_s is None else self.gloo_time_s / self.time_s


DERIVED = ("algbw", "busbw", "of_limit", "prediction_error", "cpu_s_per_gb", "gloo_cpu_s_per_gb", "ratio")


@dataclass(frozen=True)
class Report:
    """A whole run of the bench.

    Attributes:
        backend: "narrowgauge", or "narrowgauge on Gloo" where the group fell back to it.
        hosts: name of the host of each rank, in rank order.
        dtype: of the elements, such as "float32", with the codec if there is one ("float32 as int8").
        round_s: seconds that a round should take.
        limit: description of the limit; None if none is known.
        versions: of the packages that were measured.
    """

    backend: str
    hosts: tuple[str, ...]
    dtype: str
    round_s: float
    limit: str | None
    versions: dict[str, str]
    rows: tuple[BenchRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, and for each row also the values derived from them."""
        rows = [{**asdict(row), **{name: getattr(row, name) for name in DERIVED}} for row in self.rows]
        return {**asdict(self), "rows": rows}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Report:
        """The report from the result of `to_dict`, or from JSON made of it."""
        given = [field.name for field in fields(BenchRow)]
        rows = tuple(BenchRow(**{name: row[name] for name in given}) for row in document["rows"])
        return cls(**{**document, "hosts": tuple(document["hosts"]), "rows": rows})

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def head(self, collective: str) -> str:
        """The lines above a collective's rows, without a line break at the end."""
        ranks, hosts = len(self.hosts), len(set(self.hosts))
        where = f"{ranks} ranks on {hosts} host{'s' if hosts > 1 else ''}"
        names = "".join(f"{name:>{width}}" for name, _, width, _ in COLUMNS)
        units = "".join(f"{unit:>{width}}" for _, unit, width, _ in COLUMNS)
        what = f"{collective}, {self.dtype}, {where}, {self.backend}"
        return "\n".join([what, f"limit: {self.limit or 'unknown'}", names, units])

    def table(self) -> str:
        """For people: milliseconds, Mbit/s, MB."""
        return "\n\n".join(
            "\n".join([self.head(name), *map(line, rows)])
            for name, rows in groupby(self.rows, key=lambda row: row.collective)
        )


def line(row: BenchRow) -> str:
    """One line of the table."""
    return "".join(f"{cell(row):>{width}}" for _, _, width, cell in COLUMNS)


def _or_dash(value: float | None, form: str, scale: float = 1.0) -> str:
    return "-" if value is None else format(value * scale, form)


def _three_digits(value: float | None) -> str:
    """Three significant digits; all digits before the point if there are more."""
    return _or_dash(value, ".3g" if value is not None and value < 1000 else ".0f")


COLUMNS: Sequence[tuple[str, str, int, Callable[[BenchRow], str]]] = (
    ("size", "bytes", 10, lambda row: str(row.num_bytes)),
    ("time", "ms", 10, lambda row: _or_dash(row.time_s, ".3f", 1e3)),
    ("algbw", "Mbit/s", 8, lambda row: _or_dash(row.algbw, ".0f", 8e-6)),
    ("busbw", "Mbit/s", 8, lambda row: _or_dash(row.busbw, ".0f", 8e-6)),
    ("wrong", "", 6, lambda row: str(row.wrong)),
    ("limit", "ms", 10, lambda row: _or_dash(row.limit_s, ".3f", 1e3)),
    ("of limit", "", 9, lambda row: _or_dash(row.of_limit, ".3f")),
    ("planned", "ms", 10, lambda row: _or_dash(row.predicted_s, ".3f", 1e3)),
    ("error", "", 7, lambda row: _or_dash(row.prediction_error, "+.0%")),
    ("memory", "MB", 8, lambda row: _or_dash(row.memory_bytes, ".1f", 1e-6)),
    ("CPU", "s/GB", 9, lambda row: _three_digits(row.cpu_s_per_gb)),
    ("Gloo", "ms", 11, lambda row: _or_dash(row.gloo_time_s, ".3f", 1e3)),
    ("wrong", "", 6, lambda row: _or_dash(row.gloo_wrong, ".0f")),
    ("CPU", "s/GB", 9, lambda row: _three_digits(row.gloo_cpu_s_per_gb)),
    ("ratio", "", 7, lambda row: _or_dash(row.ratio, ".2f")),
)
