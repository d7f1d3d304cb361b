"""Which executor a group gets: the native engine, or Gloo where that was asked for or the engine cannot run.

All ranks of a group must choose the same. Each publishes which one its options ask for and whether its engine passed
the self-test, and reads what the others published. If one rank needs Gloo, all take it, with a warning; where a token
is set they fail instead, since Gloo's connections prove nothing, unless all ranks ask for Gloo.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch

from collectives.backend import gloo
from collectives.backend.c10d import GlooGroup, Store, dist
from collectives.backend.messages import Messages
from collectives.backend.tensors import Call, Done, Executor
from collectives.errors import RendezvousError
from collectives.options import Options
from collectives.transport.control import ControlChannel
from collectives.transport.rendezvous import Rendezvous, meet
from collectives.transport.watched_store import Endings

if TYPE_CHECKING:
    from collectives.engine.runner import Engine

logger = logging.getLogger(__name__)
COMPILE_S = 600.0
MIN_FORMING_S = 20.0  # for what is right for an op and too short for a group to form: see `wait_for_ranks_s`


class EngineExecutor:
    """Executes Calls on the native engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run(self, call: Call, timeout_s: float) -> None:
        residual = 0 if call.residual is None else call.residual.data_ptr()
        self.engine.run(call.spec, call.source.data_ptr(), call.target.data_ptr(), timeout_s, residual)

    def start(self, call: Call, done: Done, timeout_s: float) -> None:
        residual = 0 if call.residual is None else call.residual.data_ptr()
        source, target = call.source.data_ptr(), call.target.data_ptr()
        self.engine.start(call.spec, source, target, done, timeout_s, residual, call.caller)

    def close(self) -> None:
        self.engine.close()


def close_unattended(executor: Executor, messages: Messages, name: str) -> None:
    """Close what belonged to a group that went without `shutdown`; returns at once.

    On a thread of its own: a group may go wherever its last reference does, be it a thread of the engine or of Gloo,
    which cannot wait for its own end, or any code of the program's in which the garbage collector happens to run.
    """

    def close() -> None:
        messages.close()
        executor.close()

    with contextlib.suppress(RuntimeError):  # the interpreter ends and starts no threads; `lifetime.py` said goodbye
        # With `daemon` given nothing asks for the current thread: one of Gloo's would stay in Python's list of threads.
        threading.Thread(target=close, name=f"narrowgauge {name}, closing", daemon=False).start()


class Chosen(NamedTuple):
    """What carries out a group's calls.

    Attributes:
        executor: executes collectives.
        gloo: the Gloo group on which everything runs; None on the engine.
        accelerators: for each rank the kind of its accelerator; None if it has none.
    """

    executor: Executor
    gloo: GlooGroup | None
    accelerators: list[str | None]


def wait_for_ranks_s(timeout_s: float, settings: Options) -> float:
    """Seconds that a rank waits for the others to come: `timeout_s`, which torch was given for the group, as over Gloo.
    The options' timeout is meant for ops, and may be too short for processes to start together."""
    return timeout_s if settings.timeout_s is None else min(timeout_s, max(settings.timeout_s, MIN_FORMING_S))


def choose(
    store: Store, rank: int, size: int, name: str, timeout_s: float, settings: Options, parent: Endings | None = None
) -> Chosen:
    """Form the group on the executor that all its ranks can use.

    Args:
        timeout_s: torch's for the group.
        parent: which of these ranks have left the group that this one is a part of.

    Raises:
        RendezvousError: the ranks did not find each other, or differ in what must be equal; names the rank.
    """
    op_timeout_s, wait_s = settings.timeout_s or timeout_s, wait_for_ranks_s(timeout_s, settings)
    with meet(store, rank, size, name, 0, settings, wait_s, parent) as meeting:
        # All have come. To connect and to measure links takes as long as it takes, whatever was meant for an op.
        forming_s = max(wait_s, MIN_FORMING_S)
        meeting.store.renew(forming_s)
        on_gloo, accelerators = _agree(meeting, settings)
        meeting.store.renew(forming_s)
        if on_gloo:
            # A goodbye: a peer that has not yet read what was agreed on must not take this for a death.
            ControlChannel(meeting.connections.control).send_goodbye()
            meeting.connections.close()
            group = gloo.connect(dist.PrefixStore("gloo", store), rank, size, op_timeout_s, settings)
            return Chosen(gloo.GlooExecutor(group, rank, size), group, accelerators)
        from collectives.engine.runner import start  # here: on Gloo numba is never loaded

        return Chosen(EngineExecutor(start(meeting, settings, op_timeout_s)), None, accelerators)


def _agree(meeting: Rendezvous, settings: Options) -> tuple[bool, list[str | None]]:
    """Whether to take Gloo, and each rank's kind of accelerator; the same on all ranks.

    Raises:
        RendezvousError: some ranks need Gloo, and a token is set.
    """
    asked = [each.rank for each in meeting.rank_infos if each.backend == "gloo"]
    all_asked = len(asked) == meeting.size
    if not all_asked:
        meeting.connect()  # before the self-test, which may compile for a minute: who ends meanwhile is noticed
    # A rank may compile meanwhile, or wait for one that does, whatever timeout its ops are to have.
    meeting.store.renew(max(meeting.store.timeout_s, COMPILE_S))
    fault = None if asked else _self_test()
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = None if accelerator is None else accelerator.type
    published = meeting.store.gather("executor", {"fault": fault, "accelerator": kind})
    faults = [f"rank {other}: {each['fault']}" for other, each in enumerate(published) if each["fault"]]
    reason = None
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        reason = f"the native engine failed its self-test on {'; '.join(faults[:3])}{more}"
    elif asked and not all_asked:
        reason = f"the options of ranks {asked} ask for it, those of the others do not"
    if reason is not None and settings.token is not None:
        raise RendezvousError(
            f"group {meeting.store.group} would have to run on Gloo, because {reason}. Gloo's connections prove no "
            "token, and one is set: give all ranks backend='gloo' if that is meant, or run without a token"
        )
    if reason is not None:
        _warn(reason)
    return bool(faults or asked), [each["accelerator"] for each in published]


def _self_test() -> str | None:
    """Why the native engine cannot run in this process; None if it can."""
    try:
        from collectives.engine.selftest import warm_up

        logger.debug("the engine was ready after %.1f s", warm_up())
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    return None


def _warn(reason: str) -> None:
    warnings.warn(f"this group runs on Gloo, because {reason}", RuntimeWarning, stacklevel=6)
