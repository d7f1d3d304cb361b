"""libc as seen from compiled code: found by name at link time, so that what calls it can be cached on disk.

All take and return plain integers; pointers are int64 addresses.
"""

from __future__ import annotations

from numba import types

from collectives.engine.compiled.jit import jit, load_int32

_int, _size, _address = types.int32, types.int64, types.int64

recv = types.ExternalFunction("recv", _size(_int, _address, _size, _int))
recvmsg = types.ExternalFunction("recvmsg", _size(_int, _address, _int))
send = types.ExternalFunction("send", _size(_int, _address, _size, _int))
sendmsg = types.ExternalFunction("sendmsg", _size(_int, _address, _int))
setsockopt = types.ExternalFunction("setsockopt", _int(_int, _int, _int, _address, _int))
poll = types.ExternalFunction("poll", _int(_address, _size, _int))
memmove = types.ExternalFunction("memmove", _address(_address, _address, _size))
sched_yield = types.ExternalFunction("sched_yield", _int())
clock_gettime = types.ExternalFunction("clock_gettime", _int(_int, _address))
_errno_location = types.ExternalFunction("__errno_location", _address())

MSG_DONTWAIT = 0x40
MSG_NOSIGNAL = 0x4000
POLLIN, POLLOUT, POLLERR, POLLHUP = 0x1, 0x4, 0x8, 0x10
SOL_SOCKET, SO_RCVLOWAT = 1, 18
EINTR, EAGAIN = 4, 11
CLOCK_MONOTONIC = 1


@jit
def errno() -> int:
    """The calling thread's errno."""
    return load_int32(_errno_location())  # type: ignore[no-any-return]
