"""The job file that `launcher init` writes: (inventory) -> text. `config.job_file` reads it."""

from __future__ import annotations

from launcher.inventory.inventory import Inventory


def starter(inventory: Inventory, address: str | None, path: str) -> str:
    """A job file for these machines; every key has a comment with its meaning."""
    devices = sum(found.count for node in inventory.nodes for found in node.accelerators)
    kinds = sorted({found.kind for node in inventory.nodes for found in node.accelerators})
    cores = sum(node.cpus for node in inventory.nodes)
    per, most = ("gpu", devices) if devices else ("cpu", max(1, cores if address else inventory.nodes[0].cpus))
    found = f"{len(inventory.nodes)} node(s), {cores} CPU cores" + (
        f", {devices} x {', '.join(kinds)}" if kinds else ""
    )
    where = "local" if address is None else f'{{address: "{address}"}}'
    return f"""\
# Purpose:  a job file to start from, written by `launcher init` for {found}.
# Run:      launcher submit {path}
# Expect:   a small GPT learns from the source of Python's standard library for 100 steps; about a minute on two cores.
name: my-job
entrypoint: launcher.examples.train_gpt # yours: train.py, package.module, or package.module:function
args: {{steps: 100, batch: 8}} # becomes --steps 100 --batch 8

# At most this many workers, one rank each; those that would slow the job down are left out.
workers: {{min: 1, max: {most}, per: {per}}} # or {{count: 4, hosts: 2}}
cluster: {where} # or {{address: "host:6379"}}, a running Ray cluster

# What a step costs. With these, `launcher plan {path}` predicts its seconds before anything has run.
# global_batch: 64 # samples of all ranks together, shared out by speed
# workload: {{parameters: 124M, tokens_per_sample: 1024, bytes_per_sample: 1.5G}}
# accelerators: {{exclude: [P100]}} # or {{only: [...]}}
collectives: {{codec: none}} # or bf16, int8, int4, auto: fewer bytes over network links
# timeout_s: 3600 # stop the run as failed after this many seconds
"""
