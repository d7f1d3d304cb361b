"""Keeps torch.compile out of our code: it is no part of the user's model, and its threads and sockets are no graph.

torch runs a compiled model's Python frames through Dynamo, which traces the frames of any file that is not torch's own:
the methods of a process group, too, which DDP calls in the middle of a forward. A group of torch's is C++, where Dynamo
sees one call. `untraced` makes a function of ours look like that.

`torch.compiler.disable` would do the same, but imports Dynamo, which takes seconds, and wraps the function, which costs
every call something. What it leaves on a function are the two marks below; the interpreter's hook that reads the second
one is in torch's C++ and needs no Dynamo.
"""

from __future__ import annotations

import types
from typing import Any, TypeVar

from torch._C._dynamo import eval_frame

Marked = TypeVar("Marked", bound=Any)  # a function or a class

# The frame itself is run as it is, and so is every frame below it: planning and compiling call SciPy and Numba.
_RUN_AS_IT_IS = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)


def untraced(marked: Marked) -> Marked:
    """Decorator of a function, or of a class for all methods and properties in its body; returns what it was given."""
    if not isinstance(marked, type):
        _mark(marked)
        return marked
    for member in vars(marked).values():
        for function in (member, *(getattr(member, part, None) for part in ("fget", "fset", "__func__", "func"))):
            if isinstance(function, types.FunctionType):
                _mark(function)
    return marked


def _mark(function: Any) -> None:
    function._torchdynamo_disable = True  # a compiled function that calls this one is split at the call
    eval_frame.set_code_exec_strategy(function.__code__, _RUN_AS_IT_IS)  # called from a frame that is not compiled
