"""FSDP2: fully_shard on all ranks, HSDP, or with tensor parallelism on a 2 x 2 mesh; float32, or in part bfloat16."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

dist.init_process_group("gloo")
if "hsdp" in sys.argv:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
elif "tp" in sys.argv:
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    mesh = both["data"]
else:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
policy = half if "bfloat16" in sys.argv else MixedPrecisionPolicy()
torch.manual_seed(0)
model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(48, 48), torch.nn.GELU()) for _ in range(4)))
for block in model:
    if "tp" in sys.argv:
        parallelize_module(block, both["model"], {"0": ColwiseParallel(output_layouts=Replicate())})
    fully_shard(block, mesh=mesh, mp_policy=policy)
fully_shard(model, mesh=mesh, mp_policy=policy)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
torch.manual_seed(mesh.get_local_rank() if "tp" in sys.argv else dist.get_rank())
for _ in range(10):
    inputs = torch.randn(16, 48)
    loss = (model(inputs).float() - inputs.flip(1)).square().mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    print("loss", repr(loss.item()), "norm", repr(norm.full_tensor().item()))
for name, tensor in get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)).items():
    print("weight", name, repr(tensor.double().sum().item()))
dist.destroy_process_group()
