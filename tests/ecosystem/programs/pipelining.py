"""torch.distributed.pipelining: four stages under a schedule, one or two stages for each rank."""

import sys

import torch
import torch.distributed as dist
from torch.distributed import pipelining

schedule_name = sys.argv[1]
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
layers = [torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Tanh()) for _ in range(4)]
schedule_class = pipelining.schedules.get_schedule_class(schedule_name)
looped = issubclass(schedule_class, pipelining.schedules.PipelineScheduleMulti)
per_rank = 4 // size if looped else 1
assert looped or size == 4
zero_bubble_v = schedule_name in ("ZBVZeroBubble", "DualPipeV")
mine = [rank, 3 - rank] if zero_bubble_v else [rank + turn * size for turn in range(per_rank)]
stages = [pipelining.PipelineStage(layers[index], index, 4, torch.device("cpu")) for index in mine]


def loss_of(output, target):
    return (output - target).square().mean()


schedule = schedule_class(stages if looped else stages[0], n_microbatches=8, loss_fn=loss_of)
optimizer = torch.optim.SGD([weight for index in mine for weight in layers[index].parameters()], lr=0.1)
torch.manual_seed(1)
inputs = torch.randn(16, 32)
for _ in range(6):
    optimizer.zero_grad()
    losses = []
    has_last = 3 in mine
    arguments = (inputs,) if 0 in mine else ()
    more = {"target": inputs.flip(1), "losses": losses} if has_last else {}
    schedule.step(*arguments, **more)
    optimizer.step()
    if has_last:
        print("loss", repr(torch.stack(losses).mean().item()))
dist.destroy_process_group()
