"""The command `bench`: its options, their check, and the output of the report."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from collectives.bench import limit, plot
from collectives.bench.report import Report, line
from collectives.errors import UsageError
from collectives.schedule.codec import CODECS
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.units import sizes

DEFAULT_SIZES = "8,4k,64k,1M,25M"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    """What to measure and where to write the report; fields as the options below."""

    collectives: tuple[Collective, ...]
    sizes: tuple[int, ...]
    dtype: str
    codec: str
    round_s: float
    with_gloo: bool
    limit: str | None
    json: bool
    save: Path | None
    plot: Path | None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options to its parser."""
    parser.add_argument("--collective", choices=["all", *SPECIFICATIONS], default="all_reduce")
    parser.add_argument(
        "--sizes",
        default=DEFAULT_SIZES,
        help=f"message sizes (default {DEFAULT_SIZES}); 8:256M:4x stands for 8, 32, 128, ... up to 256M",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument(
        "--codec",
        choices=CODECS,
        default="none",
        help="average with this codec, as collectives.all_reduce does; Gloo runs the plain float32 sum",
    )
    parser.add_argument(
        "--round-s",
        type=float,
        default=0.25,
        help="seconds of a round (default 0.25); seven rounds each, or fewer if a call takes long",
    )
    parser.add_argument("--no-gloo", action="store_true", help="measure ours only")
    parser.add_argument("--limit", metavar="FILE", help="compute the limit from this topology JSON with the true rates")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, in seconds and bytes per second")
    parser.add_argument("--save", metavar="FILE.json", type=Path, help="write the report as JSON, too")
    parser.add_argument("--plot", metavar="FILE.png|.svg|.html", type=Path, help="draw bandwidth and time over size")


def settings_of(options: argparse.Namespace) -> Settings:
    """The options, checked.

    Raises:
        UsageError: an invalid size, time or path; a plot that cannot be drawn, because matplotlib is missing, say.
    """
    if not 0 < options.round_s <= 3600:
        raise UsageError(f"--round-s {options.round_s:g}: wanted more than 0 seconds, at most 3600")
    for path in (options.save, options.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: folder {path.parent} does not exist; create it first")
    if options.plot is not None:
        plot.check(options.plot)
    if options.codec != "none" and (options.collective, options.dtype) != ("all_reduce", "float32"):
        raise UsageError(
            f"--codec {options.codec}: codecs are for all_reduce of float32; got {options.collective}, {options.dtype}"
        )
    names = SPECIFICATIONS if options.collective == "all" else [options.collective]
    return Settings(
        collectives=tuple(cast("list[Collective]", [*names])),
        sizes=tuple(sizes(options.sizes)),
        dtype=options.dtype,
        codec=options.codec,
        round_s=options.round_s,
        with_gloo=not options.no_gloo,
        limit=options.limit,
        json=options.json,
        save=options.save,
        plot=options.plot,
    )


def measure(settings: Settings, show: Callable[[str], None] | None = None) -> Report:
    """Measure on all ranks.

    Args:
        show: called on rank 0 with each line of the table as it becomes known.

    Raises:
        UsageError: torchrun did not start this process, or the limit's file is for another number of ranks.
        PlanError, OSError: the limit's file is not a topology or cannot be read.
    """
    if "RANK" not in os.environ:
        raise UsageError("bench runs on several ranks; start it as: torchrun --nproc-per-node 4 -m collectives bench")
    is_first = int(os.environ["RANK"]) == 0
    given = limit.given(settings.limit, os.environ, int(os.environ["WORLD_SIZE"])) if is_first else None
    from collectives.bench import measure as bench  # here: it loads torch

    return bench.run(
        settings.collectives, settings.sizes, settings.dtype,
        codec=settings.codec, with_gloo=settings.with_gloo, round_s=settings.round_s, given_limit=given,
        on_progress=_Table(show) if is_first and show is not None else _nothing,
    )  # fmt: skip


def keep(report: Report, settings: Settings) -> None:
    """Write the files that --save and --plot name."""
    if settings.save is not None:
        settings.save.write_text(report.to_json() + "\n", encoding="utf-8")
    if settings.plot is not None:
        plot.draw(report, settings.plot)


def main(options: argparse.Namespace) -> None:
    """Measure as one of several ranks; rank 0 prints and writes."""
    settings = settings_of(options)
    report = measure(settings, None if settings.json else _print)
    if int(os.environ["RANK"]) == 0:
        if settings.json:
            _print(report.to_json())
        keep(report, settings)


class _Table:
    """Prints a growing report, each line once."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show

    def __call__(self, report: Report) -> None:
        if not report.rows:
            return
        *before, last = report.rows
        if not before or before[-1].collective != last.collective:
            self._show(("\n" if before else "") + report.head(last.collective))
        self._show(line(last))


def _print(text: str) -> None:
    print(text, flush=True)


def _nothing(report: Report) -> None:
    pass
