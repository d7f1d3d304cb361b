"""Run torch's suite on Gloo and on ours, and compare: what passes on Gloo has to pass on ours.

    python -m tests.conformance                              # all of it, about ten minutes on two cores
    python -m tests.conformance -k reduce_scatter            # tests whose name contains this
    python -m tests.conformance --backend narrowgauge        # ours alone, under both names
    python -m tests.conformance --files ~/pytorch/test/distributed              # torch's other tests of process groups
    python -m tests.conformance --files ~/pytorch/test/distributed/test_c10d_gloo.py    # one file of them, or any other

The suite comes with torch. The files do not: clone torch's repository at the tag of the torch that is installed. They
run on Gloo, and on ours in Gloo's place, also where they make a ProcessGroupGloo themselves; see files.py.

The exit status is 1 if a test passes on Gloo, not on ours, and is not excused in excused.py. A test that the suite
runs for backends of another name only counts as passed if it passes where our backend is called "gloo".
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conformance.excused import EXCUSED, EXCUSED_IN_FILES
from tests.conformance.files import FILES
from tests.conformance.suite import EXECUTORS, RANKS
from tests.paths import REPOSITORY

OURS = ("narrowgauge", "replaced")
Outcomes = Mapping[str, Mapping[str, Any]]


def run(executor: str, tests: Sequence[str], log: Path) -> dict[str, dict[str, Any]]:
    """The suite on an executor, in a process of its own: what each test came to.

    Args:
        tests: names of tests, all of them if there are none.
        log: file for what the suite and its processes print.

    Raises:
        RuntimeError: the suite itself broke; the message has the end of its log.
    """
    return _run("suite", [executor], tests, log)


def _run(module: str, before: Sequence[str], after: Sequence[str], log: Path) -> dict[str, dict[str, Any]]:
    """Run a module of this package, which writes outcomes to the file that it is told between its other arguments."""
    with tempfile.TemporaryDirectory() as folder, log.open("w") as output:
        out = Path(folder) / "outcomes.json"
        command = [sys.executable, "-m", f"tests.conformance.{module}", *before, str(out), *after]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        ended = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT)
        if ended.returncode:
            tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-30:])
            raise RuntimeError(f"{' '.join(command)} ended with status {ended.returncode}; its log ends so:\n{tail}")
        found: dict[str, dict[str, Any]] = json.loads(out.read_text())
        return found


def failing(gloo: Outcomes, ours: Mapping[str, Outcomes]) -> dict[tuple[str, str], str]:
    """(executor, test) that passes on Gloo and not on ours, with what it came to.

    A test skipped under our own name is no difference: the suite chose by the name. Under Gloo's name nothing is.
    """
    differences = {}
    for executor, outcomes in ours.items():
        for test, outcome in outcomes.items():
            chosen_by_name = executor == "narrowgauge" and outcome["outcome"] == "skipped"
            if gloo[test]["outcome"] == "passed" and outcome["outcome"] != "passed" and not chosen_by_name:
                differences[executor, test] = f"{outcome['outcome']}: {_gist(outcome['why'])}"
    return differences


def _gist(why: str) -> str:
    """The last line of a traceback that says what was raised."""
    said = [line for line in why.splitlines() if line and not line.startswith((" ", "Traceback", "frame #"))]
    return next((line for line in said if "Error" in line and "exited with error code" not in line), why[-200:])


def report(by_executor: Mapping[str, Outcomes], excused: Mapping[tuple[str, str], str]) -> bool:
    """Print the figures and the differences; whether all differences are excused."""
    for executor, outcomes in by_executor.items():
        counts = Counter(outcome["outcome"] for outcome in outcomes.values())
        print(f"{executor:12} {counts['passed']:4} passed {counts['failed']:4} failed {counts['skipped']:4} skipped")
    if "gloo" not in by_executor or len(by_executor) == 1:
        for executor, outcomes in by_executor.items():
            for test, outcome in outcomes.items():
                if outcome["outcome"] == "failed":
                    print(f"failed on {executor}: {test}: {_gist(outcome['why'])}")
        return True
    ours = {executor: by_executor[executor] for executor in OURS if executor in by_executor}
    differences = failing(by_executor["gloo"], ours)
    for (executor, test), outcome in differences.items():
        reason = excused.get((executor, test))
        print(f"{'excused' if reason else 'NOT EXCUSED'}, on {executor}: {test}: {reason or outcome}")
    for executor, test in sorted(set(excused) - set(differences)):
        if executor in ours and by_executor["gloo"].get(test, {}).get("outcome") == "passed":
            print(f"excused for nothing, on {executor}: {test} does as on Gloo")
    return not set(differences) - set(excused)


def compare_files(place: Path, part: str, out: Path) -> bool:
    """Run torch's files on Gloo and on ours, and print the figures and the differences; whether all are excused.

    Args:
        place: one file, or a folder, of which the files named in `FILES` are run.
        part: only tests whose name contains this.
        out: folder for outcomes and logs.
    """
    place = place.resolve()
    files = [place] if place.is_file() else [place / name for name in FILES]
    excused = {("replaced", test): reason for reason, tests in EXCUSED_IN_FILES.items() for test in tests}
    alike = True
    for file in files:
        print(f"\n{file.name}", flush=True)
        if not file.is_file():
            print(f"not there: {file}")
            continue
        by_executor = {}
        try:
            for executor in ("gloo", "replaced"):
                log = out / f"{file.stem}.{executor}.log"
                by_executor[executor] = _run("files", [executor], [str(file), "-k", part], log)
                log.with_suffix(".json").write_text(json.dumps(by_executor[executor], indent=1))
        except RuntimeError as broke:
            print(f"not run: {broke}")
            alike = alike and "gloo" not in by_executor  # a file that does not fit this torch is no difference
            continue
        alike &= report(by_executor, excused)
        ours = [outcome["groups"] > 0 for outcome in by_executor["replaced"].values() if outcome["outcome"] == "passed"]
        print(f"{sum(ours)} of the {len(ours)} that passed on replaced made a group of ours")
    return alike


def names_with(part: str) -> Collection[str]:
    """Names of the suite's tests that contain `part`."""
    os.environ.update(BACKEND="gloo", WORLD_SIZE=str(RANKS))
    from torch.testing._internal.distributed import distributed_test

    suite = distributed_test.DistributedTest._DistTestBase
    return [name for name in dir(suite) if name.startswith("test_") and part in name]


def _say_versions() -> None:
    import torch

    print(f"torch {torch.__version__}, Python {platform.python_version()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("gloo", "narrowgauge"), help="this one alone, without a comparison")
    parser.add_argument("-k", metavar="PART", default="test_", help="only tests whose name contains PART")
    parser.add_argument("--files", metavar="PLACE", type=Path, help="torch's test/distributed, or one file of it")
    parser.add_argument("--out", type=Path, default=Path("conformance"), help="folder for outcomes and logs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.files:
        if not arguments.files.exists():
            parser.error(f"--files {arguments.files}: no such folder or file")
        _say_versions()
        sys.exit(0 if compare_files(arguments.files, arguments.k, arguments.out) else 1)
    tests = sorted(names_with(arguments.k))
    if not tests:
        parser.error(f"-k {arguments.k}: no test of torch's suite has this in its name")
    executors = {"gloo": ("gloo",), "narrowgauge": OURS, None: EXECUTORS}[arguments.backend]
    _say_versions()
    by_executor = {}
    for executor in executors:
        by_executor[executor] = run(executor, tests, arguments.out / f"{executor}.log")
        (arguments.out / f"{executor}.json").write_text(json.dumps(by_executor[executor], indent=1))
    sys.exit(0 if report(by_executor, EXCUSED) else 1)


if __name__ == "__main__":
    main()
