"""Which line of the user's called, and where a thread is now.

An asynchronous op keeps its call site, which must cost next to nothing. Going from frame to frame makes an object of
each: microseconds. So the frame is looked for at the depth where the last one was, and the two frames on that border
are all that is looked at. A site is a code object and an instruction: the line's number is looked up when it is shown,
and a frame that was kept would keep its tensors alive.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from types import CodeType, FrameType

from collectives.transport.control import cut

LIBRARIES = frozenset({"collectives", "torch", "threading", "concurrent"})
"""Packages whose frames are not the user's."""
STACK_FRAMES = 12
STACK_LIMIT = 4800  # bytes
CODE_SHOWN = 200  # characters of a line


CallSite = tuple[CodeType, int]
"""A function, and an instruction in it."""
_is_library: dict[str, bool] = {}
_last_depth = 8


def describe(site: CallSite | None) -> str:
    """As "train.py:41 in step"; the path is relative if it is below the working directory."""
    if site is None:
        return "a line that is not known"
    code, instruction = site
    line = next((line for start, end, line in code.co_lines() if start <= instruction < end and line), None)
    return f"{_short(code.co_filename)}:{line or code.co_firstlineno} in {_name(code)}"


def call_site() -> CallSite | None:
    """Of the innermost frame of this thread outside torch and this package; None if there is none."""
    global _last_depth
    try:
        frame = sys._getframe(_last_depth)
        if not _of_library(frame) and _of_library(sys._getframe(_last_depth - 1)):
            return frame.f_code, frame.f_lasti
    except ValueError:  # the stack is not as deep
        pass
    depth, outer = 1, sys._getframe(1)
    while outer is not None and _of_library(outer):
        depth, outer = depth + 1, outer.f_back  # type: ignore[assignment]
    if outer is None:
        return None
    _last_depth = depth
    return outer.f_code, outer.f_lasti


def call_site_of_thread(identifier: int) -> CallSite | None:
    """The same for another thread, where it is now."""
    frame = sys._current_frames().get(identifier)
    while frame is not None and _of_library(frame):
        frame = frame.f_back
    return (frame.f_code, frame.f_lasti) if frame is not None else None


def _of_library(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    found = _is_library.get(file)
    if found is None:
        name = str(frame.f_globals.get("__name__", ""))
        found = _is_library[file] = name.partition(".")[0] in LIBRARIES
    return found


def main_stack() -> str:
    """Where the main thread is now, the innermost frame last: lines of text, at most STACK_LIMIT bytes."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "the main thread has ended"
    lines = [
        f"{_short(each.filename)}:{each.lineno} in {each.name}{f': {each.line[:CODE_SHOWN]}' if each.line else ''}"
        for each in traceback.extract_stack(frame, STACK_FRAMES)
    ]
    return cut("\n".join(lines), STACK_LIMIT, keep_end=True)


def _name(code: CodeType) -> str:
    return str(getattr(code, "co_qualname", code.co_name))  # Python 3.11


def _short(path: str) -> str:
    try:
        here = os.path.join(os.getcwd(), "")
    except OSError:  # the working directory has been removed
        return path
    return path.removeprefix(here)
