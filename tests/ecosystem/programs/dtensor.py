"""DTensor: an MLP sharded by columns and rows, each placement turned into each other one, and an embedding by rows."""

import itertools

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
torch.manual_seed(0)
tensor = torch.randn(10, 6)  # 10 rows over 2 ranks and again over 2: uneven
placements = [Shard(0), Shard(1), Replicate()]
for before, after in itertools.product(itertools.product(placements, repeat=2), repeat=2):
    moved = distribute_tensor(tensor, mesh, before).redistribute(mesh, after)
    print("moved", before, after, repr(moved.to_local().double().square().sum().item()))
for kind in ("sum", "max"):
    partial = torch.distributed.tensor.DTensor.from_local(torch.randn(4, 4), mesh, [Partial(kind), Replicate()])
    print("partial", kind, repr(partial.redistribute(mesh, [Shard(0), Shard(1)]).to_local().double().sum().item()))

model = torch.nn.Sequential(
    torch.nn.Embedding(40, 16), torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 40)
)
plan = {
    "0": RowwiseParallel(input_layouts=Replicate()),
    "1": ColwiseParallel(),
    "3": RowwiseParallel(output_layouts=Shard(-1), use_local_output=False),
}
parallelize_module(model, mesh["model"], plan)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
for _ in range(10):
    tokens = torch.randint(0, 40, (32,))
    with loss_parallel():
        loss = torch.nn.functional.cross_entropy(model(tokens), (tokens * 7) % 40)
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print("loss", repr(loss.full_tensor().item()))
dist.destroy_process_group()
