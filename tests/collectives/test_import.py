"""Importing is cheap and in any order; what it loads is loaded when it is needed. In fresh interpreters."""

from __future__ import annotations

import subprocess
import sys

import pytest


def python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr


def test_neither_torch_nor_numba_is_loaded() -> None:
    python("""
import sys
import collectives, collectives.planning.planner, collectives.topology
collectives.configure(streams=2)
collectives.stats()
assert not {"torch", "numba", "ray", "launcher"} & set(sys.modules)
""")


@pytest.mark.parametrize("imports", ["import collectives, torch.distributed", "import torch.distributed, collectives"])
def test_order_of_imports_and_numba_only_with_the_native_engine(imports: str) -> None:
    python(f"""
import sys
{imports}
import torch, torch.distributed as dist
assert "numba" not in sys.modules
for backend, loads_numba in (("gloo", False), ("narrowgauge", True)):
    collectives.configure(backend=backend)
    dist.init_process_group("narrowgauge", store=dist.HashStore(), rank=0, world_size=1)
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    assert tensor.tolist() == [1.0] * 3
    dist.destroy_process_group()
    assert ("numba" in sys.modules) == loads_numba
""")
