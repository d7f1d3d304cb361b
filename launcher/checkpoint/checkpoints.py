"""Checkpoints of a training script, under the launcher, torchrun or plain python.

    from launcher import checkpoint

    saver = checkpoint.Checkpoints(model, optimizer, shared={"sampler": sampler}, own={"attached": attached})
    for step in range(saver.restore(), steps):
        ...
        saver.save_if_due(step + 1)

Rank 0 alone writes and reads, so the ranks need no common storage; what it has comes to it and goes from it through the
process group. Whatever goes wrong there is raised on every rank. torch.distributed.checkpoint writes model and
optimizer as one process would have them, so any number of ranks can go on with them; they must fit into the memory of
rank 0 once.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from launcher import progress
from launcher.checkpoint import files
from launcher.checkpoint import state as states
from launcher.errors import CheckpointError

logger = logging.getLogger(__name__)

EVERY_STEPS = "NARROWGAUGE_CHECKPOINT_EVERY"
KEEP = "NARROWGAUGE_CHECKPOINT_KEEP"
RESUME_FROM = "NARROWGAUGE_RESUME_FROM"
KEPT = 3


class Checkpoints:
    """Saves and restores everything that a script goes on with.

    Args:
        model: any module, wrapped by DistributedDataParallel or fully_shard or not.
        optimizer: one, several, or None.
        shared: what has a state that is the same on all ranks, by name: `collectives.Sampler`, `collectives.Shares`, a
            learning-rate scheduler. A state is `state_dict` and `load_state_dict`, or `get_state` and `set_state`.
        own: what has a state that is each rank's own, by name: what `collectives.attach` gave, a generator of this
            rank's. The random numbers of python, numpy and torch, and the model's buffers, are saved without asking.
            With another number of ranks than saved, all this starts afresh, and a warning says so.
        every_steps: for `save_if_due`; None takes the job's `checkpoint: {every_steps: ...}`, else never.
        keep: how many checkpoints stay; None takes the job's `checkpoint: {keep: ...}`, else 3.
        folder: None takes the run's own, `progress.checkpoint_dir()`.

    Raises:
        ValueError: steps or number to keep are less than 1.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        *,
        shared: Mapping[str, Any] | None = None,
        own: Mapping[str, Any] | None = None,
        every_steps: int | None = None,
        keep: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self._model = model
        self._optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer or ())
        self._shared, self._own = _given(shared), _given(own)
        self._every_steps = _at_least_1("every_steps", every_steps, EVERY_STEPS, None)
        self._keep = _at_least_1("keep", keep, KEEP, KEPT) or KEPT
        self._given_folder = folder
        self._saved: int | None = None

    # Saving

    def save_if_due(self, step: int) -> bool:
        """Save after every `every_steps` steps, counted from 1; all ranks call it after each. True if it saved."""
        if self._every_steps is None or step % self._every_steps:
            return False
        self.save(step)
        return True

    def save(self, step: int) -> None:
        """Save now, unless this step was saved just before. All ranks call it, with the steps done.

        Raises:
            CheckpointError: on all ranks: no room, no permission.
        """
        if step == self._saved:
            return
        began = time.perf_counter()
        state = states.collected(self._model, self._optimizers)
        own = {name: states.state_of(thing) for name, thing in self._own.items()}
        buffers = states.own_buffers(self._model)
        ranks = states.to_rank_0(states.to_bytes({"random": states.random_state(), "own": own, "buffers": buffers}))
        outcome = _Outcome()
        if _rank() == 0:
            outcome = self._write(step, state, ranks)
        outcome = _told_by_rank_0(outcome)
        outcome.check()
        self._saved = step
        if _rank() == 0:
            seconds = round(time.perf_counter() - began, 3)
            progress.send_event("Saved", step=step, folder=outcome.folder, num_bytes=outcome.num_bytes, seconds=seconds)

    def _write(self, step: int, state: dict[str, Any], ranks: list[bytes]) -> _Outcome:
        """Rank 0's part: the files."""
        shared = states.to_bytes({name: states.state_of(thing) for name, thing in self._shared.items()})
        facts = {
            **self._names(),
            "model": {name: list(getattr(value, "shape", ())) for name, value in state["model"].items()},
            "stateless": not states.has_state(state.get("optimizer", {})),
            "world_size": len(ranks),
        }

        def fill(partial: Path) -> None:
            states.write_state(state, partial / "state")
            (partial / "shared.pt").write_bytes(shared)
            for rank, own in enumerate(ranks):
                (partial / f"rank-{rank}.pt").write_bytes(own)

        folder = self._given_folder or progress.checkpoint_path()
        try:
            written, num_bytes = files.write(folder, step, facts, fill)
            files.retain(folder, self._keep)
        except (OSError, RuntimeError, CheckpointException) as error:
            return _Outcome(problem=_cannot_write(folder, step, error))
        return _Outcome(folder=str(written), num_bytes=num_bytes)

    # Restoring

    def restore(self) -> int:
        """Load the newest whole checkpoint of this run, or else of the run that it resumes. All ranks call it, once
        everything is made and wrapped and before the first step.

        Returns:
            The steps that are done: the step to go on with, counted from 0. 0 if there is no checkpoint.

        Raises:
            CheckpointError: on all ranks: it is of another model; the run to resume has no whole checkpoint.
        """
        wanted = states.shapes(self._model)
        outcome, state, ranks = self._read(wanted) if _rank() == 0 else (_Outcome(), {}, [])
        outcome = _told_by_rank_0(outcome)
        outcome.check()
        if outcome.folder is None:
            return 0
        states.spread(state, outcome.stateless, self._model, self._optimizers)
        for name, kept in states.from_bytes(outcome.shared).items():
            states.set_state_of(self._shared[name], kept)
        if outcome.world_size == _world_size():
            own = states.from_bytes(states.each_its_own(ranks))
            for name, kept in own["own"].items():
                states.set_state_of(self._own[name], kept)
            states.set_own_buffers(self._model, own["buffers"])
            states.set_random_state(own["random"])
        elif _rank() == 0:
            logger.warning("%s", _afresh(outcome, self._own))
        self._saved = outcome.step
        if _rank() == 0:
            progress.send_event("Restored", step=outcome.step, folder=outcome.folder)
        return outcome.step

    def _read(self, wanted: states.Names) -> tuple[_Outcome, dict[str, Any], list[bytes]]:
        """Rank 0's part: the files."""
        folder, resumed = self._given_folder or progress.checkpoint_path(), os.environ.get(RESUME_FROM)
        try:
            found = files.newest(folder, logger.warning)
            if found is None and resumed:
                found = files.newest(Path(resumed), logger.warning)
            if found is None:
                return _Outcome(problem=_nothing_in(resumed) if resumed else None), {}, []
            problem = states.difference(found.facts["model"], wanted) or self._other_names(found.facts)
            if problem:
                return _Outcome(problem=f"the checkpoint {found.folder} is of another script: {problem}"), {}, []
            state = states.read_state(found.folder / "state")
            world_size = int(found.facts["world_size"])
            ranks = [(found.folder / f"rank-{rank}.pt").read_bytes() for rank in range(world_size)]
            shared = (found.folder / "shared.pt").read_bytes()
        except (OSError, RuntimeError, CheckpointException) as error:
            return _Outcome(problem=f"{_who()} cannot read checkpoints in {folder}: {_reason(error)}"), {}, []
        stateless = bool(found.facts["stateless"])
        return _Outcome(None, str(found.folder), found.step, world_size, stateless, shared), state, ranks

    def _names(self) -> dict[str, Any]:
        return {
            "optimizers": [type(each).__name__ for each in self._optimizers],
            "shared": sorted(self._shared),
            "own": sorted(self._own),
        }

    def _other_names(self, facts: Mapping[str, Any]) -> str | None:
        """What but the model differs from the script that saved."""
        told = [
            f"{kind}: it has {', '.join(facts[kind]) or 'none'}; this script has {', '.join(here) or 'none'}"
            for kind, here in self._names().items()
            if facts[kind] != here
        ]
        return "; ".join(told) or None


@dataclass(frozen=True)
class _Outcome:
    """What rank 0 tells the others about its files. `folder` None: there is no checkpoint."""

    problem: str | None = None
    folder: str | None = None
    step: int = 0
    world_size: int = 1
    stateless: bool = False
    shared: bytes = b""
    num_bytes: int = 0

    def check(self) -> None:
        if self.problem is not None:
            raise CheckpointError(self.problem)


def _told_by_rank_0(outcome: _Outcome) -> _Outcome:
    told: _Outcome = states.from_rank_0(outcome)
    return told


def _cannot_write(folder: Path, step: int, error: BaseException) -> str:
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))
    free_mb = shutil.disk_usage(there).free / 1e6
    return (
        f"{_who()} cannot write the checkpoint of step {step} into {folder}: {_reason(error)} ({free_mb:.0f} MB are "
        "free there); what was saved before is untouched. Make room, keep fewer (checkpoint: {keep: ...}) or choose "
        "another runs_dir, and go on from the last one with --resume"
    )


def _nothing_in(resumed: str) -> str:
    return (
        f"{_who()} found no whole checkpoint in {resumed}, the run to resume; wanted a folder step-N whose files are "
        "as its manifest.json says. Resume another run, or submit without --resume to start at step 0"
    )


def _reason(error: BaseException) -> str:
    """The cause, without torch's list of places; torch wraps what its writers meet."""
    if isinstance(error, CheckpointException):
        inner = next((failure[0] for failure in error.failures.values()), error)
        return _reason(inner) if inner is not error else type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error).partition("\n")[0]


def _afresh(outcome: _Outcome, own: Mapping[str, Any]) -> str:
    parts = ", ".join(["random numbers", *own])
    return (
        f"the checkpoint {outcome.folder} is of {outcome.world_size} ranks and this run has {_world_size()}: what is "
        f"each rank's own ({parts}) starts afresh; model, optimizer and place in the data go on"
    )


def _given(things: Mapping[str, Any] | None) -> dict[str, Any]:
    """Without those that the script doesn't have (None)."""
    return {name: thing for name, thing in (things or {}).items() if thing is not None}


def _at_least_1(name: str, given: int | None, variable: str, default: int | None) -> int | None:
    text = os.environ.get(variable)
    value = given if given is not None else int(text) if text else default
    if value is not None and value < 1:
        raise ValueError(f"Checkpoints got {name}={value}; wanted 1 or more, or None for the job's")
    return value


def _who() -> str:
    return f"rank {_rank()} ({os.environ.get('NARROWGAUGE_HOST') or socket.gethostname()})"


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
