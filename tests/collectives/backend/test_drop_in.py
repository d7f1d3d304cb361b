"""Unmodified scripts that ask for other backends run on narrowgauge, and still see the name they asked for."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

import collectives
from tests.processes import run


def is_ours(group: Any = None) -> bool:
    return (group or dist.group.WORLD).name() == "narrowgauge"


def total(group: Any = None) -> float:
    tensor = torch.full((3,), dist.get_rank() + 1.0)
    dist.all_reduce(tensor, group=group)
    return tensor[0].item()


def typical_script() -> None:
    """As found in tutorials: backend by device, environment for the rest."""
    dist.init_process_group(backend="nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(seconds=120))
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.ones(4, device=device)
    dist.all_reduce(tensor)
    assert tensor[0].item() == dist.get_world_size()
    dist.monitored_barrier()


def install_and_run(rank: int, size: int, store: Any) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ["TEST_PORT"]
    )
    collectives.install()
    collectives.install()
    typical_script()
    assert is_ours()
    assert dist.get_backend() == "gloo"
    assert dist.distributed_c10d.get_backend_config() == "cpu:gloo,cuda:gloo"
    for group in (dist.new_group(), dist.new_group(backend="gloo"), dist.new_group([0, 1], backend="nccl")):
        assert is_ours(group)
        assert total(group) == 3.0
    assert dist.get_backend(group) == "nccl"
    dist.destroy_process_group()
    collectives.uninstall()
    collectives.uninstall()

    def group_of(name: str, backend: str | None, **more: Any) -> bool:
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(name, store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=120),
            **more,
        )
        ours = is_ours()
        assert total() == 3.0
        dist.destroy_process_group()
        return ours

    assert not group_of("plain", "gloo")
    collectives.install()
    assert group_of("both", "cpu:gloo,cuda:nccl")
    assert group_of("default", None)
    assert group_of("by name", "narrowgauge")
    assert group_of("options", "gloo", pg_options=collectives.Options(streams=2))
    collectives.install(replace=["nccl"])
    assert not group_of("only nccl", "gloo")
    assert not group_of("partly", "cpu:gloo")
    assert not group_of("default gloo", None)
    collectives.uninstall()


def test_scripts_run_on_narrowgauge() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run(install_and_run, 2, environment={"TEST_PORT": str(port)})


@pytest.mark.parametrize("replace", [("glow",), "gloo"])
def test_unknown_names_are_refused(replace: Any) -> None:
    with pytest.raises(ValueError, match="wanted a list of names out of gloo, nccl"):
        collectives.install(replace)
