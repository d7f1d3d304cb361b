"""A worker that does what the test says: steps of an all-reduce, and an end of some kind on one rank.

--steps N --step-s S            N steps of S seconds each
--end raise@RANK:STEP           raise | exit | kill | hang
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from launcher import progress


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--step-s", type=float, default=0.0)
    parser.add_argument("--end", default="never@0:0")
    args = parser.parse_args()
    how, _, where = args.end.partition("@")
    end_rank, end_step = map(int, where.split(":"))

    dist.init_process_group("gloo")
    progress.note(niceness=os.nice(0))
    for step in range(1, args.steps + 1):
        if (dist.get_rank(), step) == (end_rank, end_step):
            end(how)
        total = torch.ones(1000)
        dist.all_reduce(total)
        assert total.eq(dist.get_world_size()).all()
        progress.report(step, of=args.steps, loss=1 / step, tokens=10)
        time.sleep(args.step_s)
    dist.destroy_process_group()


def end(how: str) -> None:
    if how == "raise":
        raise ValueError("the test wanted this")
    if how == "exit":
        sys.exit(7)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(3600)


if __name__ == "__main__":
    main()
