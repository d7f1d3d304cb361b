"""The probe: sockets in, a Topology out.

measure.py   rank 0 coordinates: traffic between the hosts, on the group's own connections -> Readings
lead.py      what one host does in each measurement
rounds.py    which pairs of hosts measure at the same time
infer.py     Readings -> Topology, without I/O
cache.py     earlier measurements, by the set of hosts
command.py   `python -m collectives probe`
"""

from __future__ import annotations

from collectives.probe.cache import recall, remember
from collectives.probe.infer import Readings, infer
from collectives.probe.measure import measure

__all__ = ["Readings", "infer", "measure", "recall", "remember"]
