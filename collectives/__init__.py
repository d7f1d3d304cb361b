"""Collectives for narrow and unequal links: a torch.distributed backend, and the calls around it.

    import collectives
    dist.init_process_group("narrowgauge")

Importing this package is cheap: it loads neither torch nor numba. If torch is loaded already, the backend is registered
with it at once, otherwise as soon as torch.distributed is imported, so the order of the imports does not matter. numba
is loaded with the first group or by `warm_up`. The plain modules (`collectives.planning`, `collectives.topology`, ...)
need neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from collectives.backend.register import register_when_imported
from collectives.backend.stats import stats
from collectives.errors import (
    CollectiveError,
    GroupClosed,
    NarrowgaugeError,
    OpMismatch,
    OpTimeout,
    PeerLost,
    PlanError,
    ProtocolError,
    RendezvousError,
    UsageError,
)
from collectives.options import Options, configure
from collectives.version import __version__

if TYPE_CHECKING:
    from collectives.backend.api import all_reduce, plan
    from collectives.backend.drop_in import install, uninstall
    from collectives.engine.selftest import warm_up
    from collectives.training.batch_shares import Shares
    from collectives.training.bucket_size import bucket_mb
    from collectives.training.ddp import attach, set_weight
    from collectives.training.sampler import Sampler, local_batch

__all__ = [
    "all_reduce",
    "attach",
    "bucket_mb",
    "configure",
    "install",
    "local_batch",
    "plan",
    "Sampler",
    "set_weight",
    "Shares",
    "stats",
    "uninstall",
    "warm_up",
    "Options",
    "NarrowgaugeError",
    "UsageError",
    "RendezvousError",
    "PlanError",
    "CollectiveError",
    "PeerLost",
    "OpMismatch",
    "OpTimeout",
    "GroupClosed",
    "ProtocolError",
    "__version__",
]

_LOADED_ON_USE = {
    "all_reduce": "backend.api",
    "attach": "training.ddp",
    "bucket_mb": "training.bucket_size",
    "install": "backend.drop_in",
    "local_batch": "training.sampler",
    "plan": "backend.api",
    "Sampler": "training.sampler",
    "set_weight": "training.ddp",
    "Shares": "training.batch_shares",
    "uninstall": "backend.drop_in",
    "warm_up": "engine.selftest",
}
"""Names whose modules load torch or numba, so they are imported at first use."""


def __getattr__(name: str) -> Any:
    if name in _LOADED_ON_USE:
        return getattr(importlib.import_module(f"{__name__}.{_LOADED_ON_USE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_when_imported()
