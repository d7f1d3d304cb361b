"""What the compiled loop returns, and what its parts return to each other."""

from __future__ import annotations

# What `advance` returns. Where it names a peer, `run.culprit` holds its rank.
DONE, INTERRUPTED, CONTROL, PEER_CLOSED, SOCKET_ERROR, TIMEOUT, BAD_HEADER, OP_MISMATCH = range(8)
# What its helpers return while nothing is wrong (below zero, so that any status above is one of the list).
IDLE, MOVED = -2, -1
