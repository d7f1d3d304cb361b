"""The probe: sockets in, a Topology out.

measure.py   rank 0 conducts: traffic between the hosts, on the group's own connections -> Readings
lead.py      each host's part in it
rounds.py    who measures with whom at the same time
infer.py     Readings -> Topology, without I/O
cache.py     what was measured before, by the set of hosts
command.py   `python -m collectives probe`
"""

from __future__ import annotations

from collectives.probe.cache import recall, remember
from collectives.probe.infer import Readings, infer
from collectives.probe.measure import measure

__all__ = ["Readings", "infer", "measure", "recall", "remember"]
