"""A Ray cluster of two nodes on this machine, started by Ray's own test helper in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.paths import REPOSITORY


def two_nodes(*, dashboard: bool = True, gpus: int = 0, path: str | None = None, **variables: str) -> Iterator[str]:
    """Two nodes of two CPUs each; gives the head's address.

    Args:
        gpus: of each node; Ray takes our word for them.
        path: PATH of the nodes; None: with this Python's folder first.
        variables: more of their environment.
    """
    # each agent takes any free port; by default all Rays of a machine want the same one, and jobs go to who has it
    node = f"num_cpus=2, num_gpus={gpus}, dashboard_agent_listen_port=0"
    program = (
        "import sys\nfrom ray.cluster_utils import Cluster\n"
        f"cluster = Cluster(initialize_head=True, head_node_args=dict({node}, include_dashboard={dashboard}))\n"
        f"cluster.add_node({node})\nprint(cluster.address, flush=True)\nsys.stdin.read()\ncluster.shutdown()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": path or f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            **variables,
        },
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.communicate(timeout=200)
