"""Which executor a group gets: the native engine, or Gloo where that was asked for or the engine cannot run.

All ranks of a group must choose alike. Each publishes what it wants and whether its engine passed its self-test, all
read all, and one rank that needs Gloo decides for everybody.
"""

from __future__ import annotations

import json
import logging
import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch

from collectives.backend import gloo
from collectives.backend.c10d import GlooGroup, Store, dist
from collectives.backend.tensors import Call, Done, Executor
from collectives.options import Options

if TYPE_CHECKING:
    from collectives.engine.runner import Engine

logger = logging.getLogger(__name__)


class EngineExecutor:
    """Executes Calls on the native engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run(self, call: Call, timeout_s: float) -> None:
        residual = 0 if call.residual is None else call.residual.data_ptr()
        self.engine.run(call.spec, call.source.data_ptr(), call.target.data_ptr(), timeout_s, residual)

    def start(self, call: Call, done: Done, timeout_s: float) -> None:
        residual = 0 if call.residual is None else call.residual.data_ptr()
        self.engine.start(call.spec, call.source.data_ptr(), call.target.data_ptr(), done, timeout_s, residual)

    def close(self) -> None:
        self.engine.close()


class Chosen(NamedTuple):
    """What a group works with.

    Attributes:
        executor: what executes its Calls.
        mail: a Gloo group for messages between two ranks.
        devices: whether a rank has an accelerator, so that tensors may have to be copied to host memory first.
    """

    executor: Executor
    mail: GlooGroup
    devices: bool


def choose(store: Store, rank: int, size: int, name: str, timeout_s: float, settings: Options) -> Chosen:
    """Form the group on the executor that all its ranks can use.

    Raises:
        RendezvousError: the ranks did not find each other.
    """
    on_gloo, devices = _agree(store, rank, size, settings)
    inner = gloo.connect(dist.PrefixStore("gloo", store), rank, size, timeout_s, settings, lazily=not on_gloo)
    if on_gloo:
        return Chosen(gloo.GlooExecutor(inner, rank, size), inner, devices)
    from collectives.engine.runner import connect

    meeting = dist.PrefixStore("engine", store)
    return Chosen(EngineExecutor(connect(meeting, rank, size, name, timeout_s, settings)), inner, devices)


def _agree(store: Store, rank: int, size: int, settings: Options) -> tuple[bool, bool]:
    """Whether to take Gloo, and whether any rank has an accelerator; the same on all ranks."""
    wants_gloo = settings.backend == "gloo"
    fault = None if wants_gloo else _self_test()
    devices = torch.accelerator.is_available()
    store.set(f"executor/{rank}", json.dumps({"gloo": wants_gloo, "fault": fault, "devices": devices}))
    said = [json.loads(store.get(f"executor/{other}")) for other in range(size)]
    faults = [f"rank {other}: {each['fault']}" for other, each in enumerate(said) if each["fault"]]
    asked = [other for other, each in enumerate(said) if each["gloo"]]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        _warn(f"the native engine failed its self-test on {'; '.join(faults[:3])}{more}")
    elif 0 < len(asked) < size:
        _warn(f"ranks {asked} ask for it by their options and the others do not")
    return bool(faults or asked), any(each["devices"] for each in said)


def _self_test() -> str | None:
    """What keeps the native engine from running in this process; None if nothing does."""
    try:
        from collectives.engine.selftest import warm_up

        logger.debug("the engine was ready after %.1f s", warm_up())
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    return None


def _warn(reason: str) -> None:
    warnings.warn(f"this group runs on Gloo, since {reason}", RuntimeWarning, stacklevel=6)
