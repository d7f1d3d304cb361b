"""torch.distributed as our files use it.

torch's stubs for its C++ classes lack many of their methods and overloads, so a type checker takes them as Any here,
once, and checks the rest of our code.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeAlias

import torch.distributed

dist: Any = torch.distributed
c10d: Any = torch.distributed.distributed_c10d
TorchBackend: Any = dist._Backend

Store: TypeAlias = Any
GlooGroup: TypeAlias = Any
Work: TypeAlias = Any


def all_reduce_options(op: Any = dist.ReduceOp.SUM, *, async_op: bool = True, timeout: timedelta | None = None) -> Any:
    """c10d's AllreduceOptions. `timeout` None leaves the group's own in force."""
    options = c10d.AllreduceOptions()
    options.reduceOp, options.asyncOp = op, async_op
    if timeout is not None:
        options.timeout = timeout
    return options
