"""torch's built-in comm hooks, which DDP runs in C++, over our groups.

ALLREDUCE works as it is. FP16_COMPRESS takes a C++ list of tensors from the future of an all-reduce, and a future that
Python completes holds a Python object, whatever that object is. So torch fails in backward, with an internal assertion.
torch's Python hook of the same name does the same arithmetic, and a model over one of our groups gets that one.
"""

from __future__ import annotations

import functools
from typing import Any

from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from collectives.backend.c10d import dist


def serve(group_class: type) -> None:
    """From now on in this process, models over groups of this class get the Python hook. May be called again."""
    register = DistributedDataParallel._register_builtin_comm_hook
    if hasattr(register, "__wrapped__"):
        return

    @functools.wraps(register)
    def register_what_works(self: DistributedDataParallel, comm_hook_type: Any) -> None:
        if comm_hook_type == dist.BuiltinCommHookType.FP16_COMPRESS and isinstance(self.process_group, group_class):
            self.register_comm_hook(None, default_hooks.fp16_compress_hook)
        else:
            register(self, comm_hook_type)  # type: ignore[no-untyped-call]

    DistributedDataParallel._register_builtin_comm_hook = register_what_works  # type: ignore[method-assign]
