"""Checkpoints of a training script, under the launcher, torchrun or plain python.

    from launcher import checkpoint

    saver = checkpoint.Checkpoints(model, optimizer, shared={"sampler": sampler}, own={"attached": attached})
    for step in range(saver.restore(), steps):
        ...
        saver.save_if_due(step + 1)

Rank 0 alone reads and writes files, so the ranks need no common storage. State moves to and from it through the process
group. Model and optimizer are saved unsharded, as one process would have them, so that a run with any number of ranks
can load them. They must fit into the memory of rank 0 once.

A rank that raises alone would leave the others waiting in the next collective until it times out. So rank 0 catches
what goes wrong with its files, broadcasts the outcome, and all ranks raise the same error (`_Outcome`). The same holds
for the state of the script's own objects (`state_dict` or `get_state`) on any rank, when it is saved. What an object
raises when its state is loaded is raised where it happens.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
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

# How the launcher passes a job's `checkpoint` section and --resume on to the script.
EVERY_STEPS = "NARROWGAUGE_CHECKPOINT_EVERY"
KEEP = "NARROWGAUGE_CHECKPOINT_KEEP"
RESUME_FROM = "NARROWGAUGE_RESUME_FROM"
DEFAULT_KEEP = 3


class Checkpoints:
    """Saves and restores the state of a training script.

    Every rank creates one, after the model is wrapped, and all ranks make the same calls in the same order: `restore`
    once before the first step, `save_if_due` or `save` after steps. Without a process group it works on one process.

    Objects in `shared` and `own` must have `state_dict()` and `load_state_dict(state)`, or `get_state()` and
    `set_state(state)`. Values that are None are ignored, so that optional objects need no condition.

    Args:
        model: any module; DistributedDataParallel and fully_shard are supported.
        optimizer: one, several in a fixed order, or None.
        shared: objects whose state is the same on all ranks, by name, such as `collectives.Sampler`,
            `collectives.Shares` or a learning-rate scheduler. Saved once, by rank 0.
        own: objects whose state differs between ranks, by name, such as the result of `collectives.attach` or a
            `torch.Generator`. Saved for each rank. The random numbers of python, numpy and torch, and the model's
            buffers, are always saved with them. If a run has another number of ranks than the checkpoint, this state is
            not restored, and rank 0 logs a warning.
        every_steps: steps between the saves of `save_if_due`. None: `checkpoint.every_steps` of the job file; without
            that, `save_if_due` never saves.
        keep: number of checkpoints to keep; older ones are deleted after each save. None: `checkpoint.keep` of the job
            file, or 3.
        folder: of the checkpoints. None: that of the run, `progress.checkpoint_dir()`.

    Raises:
        ValueError: `every_steps` or `keep` is less than 1.
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
        self._shared, self._own = _without_none(shared), _without_none(own)
        self._every_steps = _at_least_1("every_steps", every_steps, EVERY_STEPS, None)
        self._keep = _at_least_1("keep", keep, KEEP, DEFAULT_KEEP) or DEFAULT_KEEP
        self._given_folder = folder
        self._saved: int | None = None

    # Saving

    def save_if_due(self, step: int) -> bool:
        """Save if `step` is a multiple of `every_steps`. All ranks call it after each step.

        Args:
            step: number of steps done, counted from 1.

        Returns:
            Whether it saved.

        Raises:
            CheckpointError: as of `save`.
        """
        if self._every_steps is None or step % self._every_steps:
            return False
        self.save(step)
        return True

    def save(self, step: int) -> None:
        """Save now. All ranks call it. Does nothing if this step is the one that was saved or restored last.

        Blocks until the files are on the disk of rank 0 and the other ranks know it. Earlier checkpoints are deleted
        only after the new one is complete.

        Args:
            step: number of steps done, counted from 1.

        Raises:
            CheckpointError: on all ranks: rank 0 cannot write, for lack of space or permission; or an object raised
                when it was asked for its state, or that cannot be pickled (the cause, on the rank where that happened).
                Earlier checkpoints are unchanged.
        """
        if step == self._saved:
            return
        began = time.perf_counter()
        state = states.gather_state(self._model, self._optimizers)
        # From here to the broadcast ranks wait for each other, so errors are kept and travel along.
        own = shared = None
        failure: CheckpointError | None = None
        try:
            buffers = states.local_buffers(self._model)
            own = _packed("own", self._own, {"random": states.random_state(), "buffers": buffers})
            shared = _packed("shared", self._shared) if _rank() == 0 else b""
        except CheckpointError as error:
            failure = error
        ranks = states.gather((own, None if failure is None else str(failure)))
        outcome = _Outcome()
        if _rank() == 0:
            problem = next((problem for _, problem in ranks if problem is not None), None)
            contents = [content for content, _ in ranks]
            outcome = _Outcome(problem) if problem is not None else self._write(step, state, shared or b"", contents)
        outcome = _broadcast(outcome)
        if failure is not None:
            raise failure
        outcome.check()
        self._saved = step
        if _rank() == 0:
            seconds = round(time.perf_counter() - began, 3)
            progress.send_event("Saved", step=step, folder=outcome.folder, num_bytes=outcome.num_bytes, seconds=seconds)

    def _write(self, step: int, state: dict[str, Any], shared: bytes, ranks: list[bytes]) -> _Outcome:
        """Rank 0's part of `save`: write the files. Errors are in the outcome."""
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
        """Load the newest complete checkpoint of this run; if it has none, of the run that it resumes. All ranks call
        it once, after all objects are created and before the first step.

        A checkpoint whose files do not match their checksums is skipped, with a warning on rank 0.

        Returns:
            Number of steps done, which is the index of the next step counted from 0. 0 if there is no checkpoint.

        Raises:
            CheckpointError: on all ranks: the checkpoint is of another model or has other optimizers or objects; the
                run to resume has no complete checkpoint; rank 0 cannot read the files.
        """
        wanted = states.shapes(self._model)
        outcome, state, ranks = self._read(wanted) if _rank() == 0 else (_Outcome(), {}, [])
        outcome = _broadcast(outcome)
        outcome.check()
        if outcome.folder is None:
            return 0
        states.load_state(state, outcome.stateless, self._model, self._optimizers)
        for name, kept in states.from_bytes(outcome.shared).items():
            states.set_state_of(self._shared[name], kept)
        if outcome.world_size == _world_size():
            own = states.from_bytes(states.scatter(ranks))
            for name, kept in own["own"].items():
                states.set_state_of(self._own[name], kept)
            states.set_local_buffers(self._model, own["buffers"])
            states.set_random_state(own["random"])
        elif _rank() == 0:
            logger.warning("%s", _not_restored(outcome, self._own))
        self._saved = outcome.step
        if _rank() == 0:
            progress.send_event("Restored", step=outcome.step, folder=outcome.folder)
        return outcome.step

    def _read(self, wanted: states.Names) -> tuple[_Outcome, dict[str, Any], list[bytes]]:
        """Rank 0's part of `restore`: read the files. Returns the outcome, model and optimizer, and the state of each
        rank.

        `wanted` has the shapes of this script's model. They are compared before anything is loaded, since an error in
        the middle of loading would leave a model that is half old and half new.
        """
        folder, resumed = self._given_folder or progress.checkpoint_path(), os.environ.get(RESUME_FROM)
        try:
            found = files.newest(folder, logger.warning)
            if found is None and resumed:
                found = files.newest(Path(resumed), logger.warning)
            if found is None:
                return _Outcome(problem=_no_checkpoint(resumed) if resumed else None), {}, []
            problem = states.difference(found.facts["model"], wanted) or self._other_parts(found.facts)
            if problem:
                return _Outcome(problem=f"the checkpoint {found.folder} is of another script: {problem}"), {}, []
            state = states.read_state(found.folder / "state")
            world_size = int(found.facts["world_size"])
            ranks = [(found.folder / f"rank-{rank}.pt").read_bytes() for rank in range(world_size)]
            shared = (found.folder / "shared.pt").read_bytes()
        except (OSError, RuntimeError, CheckpointException) as error:
            return _Outcome(problem=f"{_this_rank()} cannot read checkpoints in {folder}: {_reason(error)}"), {}, []
        stateless = bool(found.facts["stateless"])
        return _Outcome(None, str(found.folder), found.step, world_size, stateless, shared), state, ranks

    def _names(self) -> dict[str, Any]:
        return {
            "optimizers": [type(each).__name__ for each in self._optimizers],
            "shared": sorted(self._shared),
            "own": sorted(self._own),
        }

    def _other_parts(self, facts: Mapping[str, Any]) -> str | None:
        """How optimizers and objects differ from those of the script that saved; None if they do not."""
        differences = [
            f"{kind}: it has {', '.join(facts[kind]) or 'none'}; this script has {', '.join(here) or 'none'}"
            for kind, here in self._names().items()
            if facts[kind] != here
        ]
        return "; ".join(differences) or None


@dataclass(frozen=True)
class _Outcome:
    """The result of rank 0's file operations, which it broadcasts.

    Attributes:
        problem: the message of the error; None if there is none.
        folder: of the checkpoint that was written or read; None if there is none to read.
        step: of that checkpoint.
        world_size: ranks that saved it.
        stateless: whether its optimizers keep no tensors.
        shared: the state of the shared objects, as bytes.
        num_bytes: of the files that were written.
    """

    problem: str | None = None
    folder: str | None = None
    step: int = 0
    world_size: int = 1
    stateless: bool = False
    shared: bytes = b""
    num_bytes: int = 0

    def check(self) -> None:
        """Raise the error, on every rank alike."""
        if self.problem is not None:
            raise CheckpointError(self.problem)


def _packed(kind: str, things: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> bytes:
    """The states of the script's objects as bytes, and those of `more` if there are any.

    Args:
        kind: "own" or "shared", as the script passed them.

    Raises:
        CheckpointError: an object raised, or its state cannot be pickled; says which.
    """
    found: dict[str, Any] = {}
    for name, thing in things.items():
        with _blaming(f"{kind}[{name!r}]", thing):
            found[name] = states.state_of(thing)
    try:
        return states.to_bytes(found if more is None else {**more, kind: found})
    except Exception:
        for name, thing in things.items():  # each by itself, to say which
            with _blaming(f"{kind}[{name!r}]", thing):
                states.to_bytes(found[name])
        raise


@contextlib.contextmanager
def _blaming(name: str, thing: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise CheckpointError(
            f"{_this_rank()} cannot save the state of {name}, a {type(thing).__name__}: {type(error).__name__}: {error}"
        ) from error


def _broadcast(outcome: _Outcome) -> _Outcome:
    """Rank 0's outcome, on all ranks."""
    received: _Outcome = states.broadcast(outcome)
    return received


def _cannot_write(folder: Path, step: int, error: BaseException) -> str:
    existing = next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))
    free_mb = shutil.disk_usage(existing).free / 1e6
    return (
        f"{_this_rank()} cannot write the checkpoint of step {step} into {folder}: {_reason(error)} ({free_mb:.0f} MB "
        f"are "
        "free there); earlier checkpoints are unchanged. Free some space, keep fewer (checkpoint: {keep: ...}) or "
        "choose "
        "another runs_dir, then continue from the last one with --resume"
    )


def _no_checkpoint(resumed: str) -> str:
    return (
        f"{_this_rank()} found no complete checkpoint in {resumed}, the run to resume; wanted a folder step-N whose "
        f"files "
        "match its manifest.json. Resume another run, or submit without --resume to start at step 0"
    )


def _reason(error: BaseException) -> str:
    """The cause in one line. torch wraps what its writers raise, with a traceback for each rank in the message."""
    if isinstance(error, CheckpointException):
        inner = next((failure[0] for failure in error.failures.values()), error)
        return _reason(inner) if inner is not error else type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error).partition("\n")[0]


def _not_restored(outcome: _Outcome, own: Mapping[str, Any]) -> str:
    parts = ", ".join(["random numbers", *own])
    return (
        f"the checkpoint {outcome.folder} was saved by {outcome.world_size} ranks and this run has {_world_size()}: "
        f"the "
        f"state of each rank ({parts}) is not restored; model, optimizer and position in the data are"
    )


def _without_none(things: Mapping[str, Any] | None) -> dict[str, Any]:
    """The objects that are not None."""
    return {name: thing for name, thing in (things or {}).items() if thing is not None}


def _at_least_1(name: str, given: int | None, variable: str, default: int | None) -> int | None:
    text = os.environ.get(variable)
    value = given if given is not None else int(text) if text else default
    if value is not None and value < 1:
        raise ValueError(f"Checkpoints got {name}={value}; wanted 1 or more, or None for the value of the job")
    return value


def _this_rank() -> str:
    return f"rank {_rank()} ({os.environ.get('NARROWGAUGE_HOST') or socket.gethostname()})"


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
