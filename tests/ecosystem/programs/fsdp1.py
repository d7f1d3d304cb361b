"""FSDP1 under a strategy, with clipping and a gathered state dict. HYBRID_SHARD has a 2 x 2 mesh, others all ranks."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, ShardingStrategy, StateDictType
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

strategy = ShardingStrategy[sys.argv[1]]
dist.init_process_group("gloo")
mesh = (
    init_device_mesh("cpu", (2, 2)) if "HYBRID" in strategy.name else init_device_mesh("cpu", (dist.get_world_size(),))
)
torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
model = torch.nn.TransformerEncoder(layer, 2)
wrap = ModuleWrapPolicy({torch.nn.TransformerEncoderLayer})
model = FullyShardedDataParallel(
    model, auto_wrap_policy=wrap, sharding_strategy=strategy, device_mesh=mesh, device_id=torch.device("cpu")
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
torch.manual_seed(dist.get_rank())
for _ in range(10):
    inputs = torch.randn(4, 8, 32)
    loss = (model(inputs) - inputs.flip(1)).square().mean()
    loss.backward()
    norm = model.clip_grad_norm_(1.0)
    optimizer.step()
    optimizer.zero_grad()
    print("loss", repr(loss.item()), "norm", repr(norm.item()))
whole = FullStateDictConfig(rank0_only=True)
with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, whole):
    for name, tensor in model.state_dict().items():
        print("weight", name, repr(tensor.double().sum().item()))
dist.destroy_process_group()
