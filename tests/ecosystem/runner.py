"""Starts a program once and collects what its ranks did."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ecosystem.program import GLOO, OURS, OWN, Program
from tests.paths import REPOSITORY

END_S = 20.0  # torchrun ends its workers in this time once it is asked to


@dataclass(frozen=True)
class Outcome:
    """What a program came to on one backend.

    Attributes:
        problem: why there is nothing to compare; None if the program ended well.
        printed: for each rank what it printed that counts, in order.
        steps: for each rank [digest, norm of the weights, norm of the gradients] after each step of an optimizer.
        seconds: that the program took, with the start of its processes.
    """

    problem: str | None
    printed: Sequence[Sequence[str]] = ()
    steps: Sequence[Sequence[Sequence[Any]]] = ()
    seconds: float = 0.0


def run(program: Program, backend: str, folder: Path, programs: Path | None) -> Outcome:
    """Run a program to its end.

    Args:
        backend: GLOO or OURS.
        folder: an empty one, for the program to work in and for what it leaves.
        programs: the folder with the user's clones.
    """
    work, out = folder / "work", folder / "out"
    out.mkdir(parents=True)
    if program.clone:
        assert programs is not None
        shutil.copytree(programs / program.clone.name, work, ignore=shutil.ignore_patterns(".git"), symlinks=True)
        work /= program.clone.folder
    else:
        work.mkdir()
    if program.prepare:
        program.prepare(work)
    began = time.monotonic()
    with (out / "torchrun").open("w") as log:
        status = _run_to_end(_command(program, backend, work, out), work, program.timeout_s, log.fileno())
    seconds = time.monotonic() - began
    if status != 0:
        how = f"still ran after {program.timeout_s:g} s" if status is None else f"ended with status {status}"
        return Outcome(f"{how}: {_last_words(out)}", seconds=seconds)
    return _collected(program, backend, out, seconds)


def _command(program: Program, backend: str, work: Path, out: Path) -> list[str]:
    own = program.clone is None or program.script.startswith("own:")
    script = OWN / program.script.removeprefix("own:") if own else work / program.script
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(program.processes)]
    start = [
        str(Path(__file__).with_name("start.py")),
        backend,
        program.device,
        str(out),
        str(script),
        *program.arguments,
    ]
    return [sys.executable, *(torchrun if program.processes > 1 else []), *start]


def _run_to_end(command: Sequence[str], work: Path, timeout_s: float, log: int) -> int | None:
    """Exit status of a command; None if it had to be stopped."""
    process = subprocess.Popen(
        command, cwd=work, env=_environment(work), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
        with suppress(ProcessLookupError):  # what it has left behind, such as processes that its tests had started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(work: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NARROWGAUGE_")}
    return kept | {
        "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(work))),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONHASHSEED": "0",
        # Nothing is looked up in a hub, and what libraries keep for themselves stays in the program's folder.
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / "huggingface"),
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
        "TORCH_HOME": str(work / "torch"),
    }


def _last_words(out: Path) -> str:
    """The last line that says what was raised, of a rank or else of torchrun."""
    logs = [path for path in sorted(out.iterdir()) if path.name == "torchrun" or path.suffix == ".err"]
    for log in sorted(logs, key=lambda path: path.name == "torchrun"):
        # torch begins each line of an uncaught exception with the rank.
        said = re.findall(
            r"^(?:\[rank\d+\]: )?([\w.]+(?:Error|Exception|Lost|Exit)\b.*)", log.read_text(errors="replace"), re.M
        )
        if said:
            return f"{log.stem}: {said[-1][:300]}"
    return "no rank printed an error"


def _collected(program: Program, backend: str, out: Path, seconds: float) -> Outcome:
    printed, steps, groups = [], [], set()
    for rank in range(program.processes):
        try:
            record = json.loads((out / f"rank-{rank}.json").read_text())
        except FileNotFoundError:
            return Outcome(f"rank {rank} left no record; it ended by itself, with status 0", seconds=seconds)
        lines = (out / f"rank-{rank}.out").read_text(errors="replace")
        found = re.finditer(program.prints, lines, re.MULTILINE) if program.prints else ()
        printed.append([value for match in found for value in match.groups() or (match.group(),) if value is not None])
        steps.append(record["steps"])
        groups |= set(record["groups"])
    if not any(printed) and not any(steps):
        return Outcome("printed nothing that counts, and no optimizer made a step", seconds=seconds)
    if (OURS in groups) != (backend == OURS) or (backend == OURS and GLOO in groups):
        return Outcome(f"meant for {backend}, it made groups of {', '.join(groups) or 'no backend'}", seconds=seconds)
    return Outcome(None, printed, steps, seconds)
