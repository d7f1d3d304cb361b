"""torch.distributed.checkpoint: saved by one sharding, loaded by another, and saved beside training by async_save."""

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def made(mesh):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 36), torch.nn.ReLU(), torch.nn.Linear(36, 24))
    fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def step(model, optimizer):
    inputs = torch.randn(8, 24)
    loss = (model(inputs) - inputs.flip(1)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print("loss", repr(loss.item()))


dist.init_process_group("gloo")
flat = init_device_mesh("cpu", (4,))
model, optimizer = made(init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
torch.manual_seed(dist.get_rank())
for _ in range(3):
    step(model, optimizer)
weights, moments = get_state_dict(model, optimizer)
saving = dcp.async_save({"weights": weights, "moments": moments}, checkpoint_id="saved")
saving.result()
other, other_optimizer = made(flat)
weights, moments = get_state_dict(other, other_optimizer)
state = {"weights": weights, "moments": moments}
dcp.load(state, checkpoint_id="saved")
set_state_dict(other, other_optimizer, model_state_dict=state["weights"], optim_state_dict=state["moments"])
for name, weight in other.named_parameters():
    print("weight", name, repr(weight.full_tensor().double().sum().item()))
writing = None
for _ in range(3):
    step(model, optimizer)
    weights, moments = get_state_dict(model, optimizer)
    if writing is not None:
        writing.result()
    writing = dcp.async_save({"weights": weights, "moments": moments}, checkpoint_id="beside")
writing.result()
dist.destroy_process_group()
