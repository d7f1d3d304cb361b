"""torch.distributed as our files use it.

torch's stubs for its C++ classes lack many of their methods and overloads, so a type checker takes them as Any here,
once, and checks the rest of our code.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch.distributed

dist: Any = torch.distributed
c10d: Any = torch.distributed.distributed_c10d

Store: TypeAlias = Any
GlooGroup: TypeAlias = Any
Work: TypeAlias = Any
