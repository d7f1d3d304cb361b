"""Programs that nobody here wrote, over Gloo and over ours, with the same seeds and data: are the results the same?

    python -m tests.ecosystem                               # those whose packages are installed
    python -m tests.ecosystem --programs ~/programs         # and those cloned into that folder
    python -m tests.ecosystem --only nanoGPT fsdp2-hsdp     # these
    python -m tests.ecosystem --list                        # what there is, and what each one needs

Nothing is installed and nothing is downloaded; what is not there is skipped, with the command that gets it. CPU only.
The exit status is 1 if ours gives another result than Gloo or fails alone, and 2 if a program could not be compared,
because it fails on Gloo as well or gives other results there each time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.ecosystem.catalogue import PROGRAMS
from tests.ecosystem.compare import Equal, Verdict, compare
from tests.ecosystem.program import GLOO, OURS, Program
from tests.ecosystem.runner import run
from tests.paths import REPOSITORY

COLUMNS = ("program", "version", "ranks", "compared", "Gloo", "ours", "equal")


def judge(program: Program, folder: Path, programs: Path | None) -> Verdict:
    """Run a program on both backends, and on Gloo once more if the results differ: it may differ from itself.

    Args:
        folder: an empty one; it keeps what the runs left.
        programs: the folder with the user's clones.
    """
    if missing := program.missing(programs):
        return Verdict(Equal.SKIPPED, why=missing)
    gloo, ours = (run(program, backend, folder / backend, programs) for backend in (GLOO, OURS))
    verdict = compare(gloo, ours, program.tolerance, program.excused)
    if verdict.equal is Equal.NO and ours.problem is None:
        again = compare(gloo, run(program, GLOO, folder / "gloo-again", programs), program.tolerance)
        if again.equal is Equal.NO:
            why = f"two runs on Gloo differ, too; {again.why.replace('ours', 'then')}"
            return dataclasses.replace(verdict, equal=Equal.BROKEN, why=why)
    return verdict


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as a table in Markdown, with the reasons below it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(row[column]).replace("|", "\\|") for column in COLUMNS) + " |" for row in rows]
    reasons = [f"{row['program']}: {row['equal']}: {row['why']}" for row in rows if row["why"]]
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def status(rows: Sequence[Mapping[str, Any]]) -> int:
    """The exit status for results."""
    found = {row["equal"] for row in rows}
    return 1 if Equal.NO.value in found else 2 if Equal.BROKEN.value in found else 0


def named(part: str, programs: Sequence[Program]) -> list[Program]:
    """The program of this name, or else those whose names begin so."""
    exactly = [program for program in programs if program.name == part]
    return exactly or [program for program in programs if program.name.startswith(part)]


def main(programs: Sequence[Program] = PROGRAMS, arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these programs alone; NAME may be how names begin")
    where = os.environ.get("ECOSYSTEM_PROGRAMS")
    parser.add_argument(
        "--programs", type=Path, metavar="DIR", default=Path(where) if where else None,
        help="folder with git clones of programs; default: the variable ECOSYSTEM_PROGRAMS",
    )  # fmt: skip
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write the table to this file, too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the working folders and logs of all runs here")
    parser.add_argument("--list", action="store_true", help="print the programs and what they need, and run none")
    options = parser.parse_args(arguments)
    clones = options.programs.resolve() if options.programs else None
    if clones and not clones.is_dir():
        parser.error(f"--programs {options.programs}: no such folder")
    unknown = [part for part in options.only or () if not named(part, programs)]
    if unknown:
        parser.error(f"--only {' '.join(unknown)}: no program of that name; --list shows all")
    chosen = [one for one in programs if not options.only or any(one in named(part, programs) for part in options.only)]
    if options.list:
        print("\n".join(f"{program.name:32} {program.missing(clones) or 'is there'}" for program in chosen))
        return 0
    rows = _run_all(chosen, clones, options.keep)
    print(
        f"\n{_versions()}\n\n{table(rows)}\n\n"
        + ", ".join(f"{n} {word}" for word, n in Counter(r["equal"] for r in rows).items())
    )
    if options.save:
        options.save.write_text(json.dumps({"versions": _versions(), "programs": rows}, indent=1) + "\n")
    return status(rows)


def _run_all(chosen: Sequence[Program], clones: Path | None, keep: Path | None) -> list[dict[str, Any]]:
    if not all(program.missing(clones) for program in chosen):  # compiled once before the clock of any program runs
        subprocess.run([sys.executable, "-c", "import collectives; collectives.warm_up()"], cwd=REPOSITORY, check=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="ecosystem-") as scratch:
        for program in chosen:
            verdict = judge(program, (keep.resolve() if keep else Path(scratch)) / program.name, clones)
            there = verdict.equal is not Equal.SKIPPED
            rows.append(
                {
                    "program": program.name,
                    "version": program.version(clones) if there else "",
                    "ranks": program.processes,
                    "compared": verdict.compared,
                    "Gloo": verdict.gloo,
                    "ours": verdict.ours,
                    "equal": verdict.equal.value,
                    "why": verdict.why,
                }
            )
            print(f"{program.name:32} {verdict.equal.value:14} {verdict.why}", flush=True)
    return rows


def _versions() -> str:
    import torch

    return f"torch {torch.__version__}, Python {platform.python_version()}"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the program that runs, too
    sys.exit(main())
