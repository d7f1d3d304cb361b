"""minGPT's adder project on each rank's own samples: its dataset, model and trainer; the model is wrapped in DDP."""

import sys

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, "projects/adder")
from adder import AdditionDataset, get_config
from mingpt.model import GPT
from mingpt.trainer import Trainer
from mingpt.utils import set_seed

dist.init_process_group("gloo")
config = get_config()
config.trainer.merge_from_dict({"max_iters": 30, "num_workers": 0, "batch_size": 32, "device": "cpu"})
set_seed(config.system.seed + dist.get_rank())
dataset = AdditionDataset(config.data, split="train")
config.model.vocab_size, config.model.block_size = dataset.get_vocab_size(), dataset.get_block_size()
trainer = Trainer(config.trainer, GPT(config.model), dataset)
wrapped = DistributedDataParallel(trainer.model)
wrapped.configure_optimizers = trainer.model.configure_optimizers
trainer.model = wrapped
trainer.set_callback("on_batch_end", lambda trainer: print("loss", repr(trainer.loss.item())))
trainer.run()
dist.destroy_process_group()
