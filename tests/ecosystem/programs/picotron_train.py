"""picotron's own train.py: ``picotron_train.py DP TP PP CP ENGINE``. Only what it would download is made here.

The data set is made-up text, the tokenizer takes characters, the model is a small Llama with random weights. Its
imports of flash_attn, which needs CUDA, are answered by empty modules; on CPUs it does not call them.
"""

import json
import os
import random
import runpy
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy
import torch

LAYERS, WIDTH, INNER, HEADS, VOCABULARY, LENGTH = 4, 32, 64, 4, 128, 32


class Characters:
    """A tokenizer as picotron's loader calls it."""

    def batch_encode_plus(self, texts, **_):
        return {
            "input_ids": [numpy.frombuffer(text.encode("ascii"), numpy.uint8).astype(numpy.int64) for text in texts]
        }


def write_config(dp, tp, pp, cp, engine):
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "FLASH_ATTEN": "0", "HF_TOKEN": "none"}
    parallel = {"dp_size": int(dp), "tp_size": int(tp), "pp_size": int(pp), "cp_size": int(cp), "pp_engine": engine}
    training = {"seed": 42, "learning_rate": 3e-3, "total_train_steps": 12, "seq_length": LENGTH, "max_tokens": None}
    saves = int(dp) > 1 or int(cp) == 1  # with cp alone its save_checkpoint looks for a wrapper that it has not made
    config = {
        "distributed": parallel | {"backend": "gloo", "use_cpu": True},
        "model": {"name": "made", "num_hidden_layers": LAYERS, "use_fused_adam": False},
        "training": training | {"micro_batch_size": 2, "gradient_accumulation_steps": 4},
        "dataset": {"name": "made", "num_workers": 0, "num_proc": None},
        "checkpoint": {"save_dir": "checkpoints", "save_frequency": 10 if saves else 100, "load_path": ""},
        "logging": {"use_wandb": False, "run_name": None},
        "environment": environment,
    }
    name = f"config-{os.environ['RANK']}.json"
    Path(name).write_text(json.dumps(config))
    return name


def empty_module(name, *functions):
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for function in functions:
        setattr(module, function, None)
    sys.modules[name] = module


def write_weights(*_, local_dir, **__):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)

    def weight(*shape):
        return torch.randn(shape, generator=generator) * 0.02

    shapes = {
        **{f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in "qkvo"},
        **{"mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER)},
        **{"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)},
    }
    weights = {"model.embed_tokens.weight": weight(VOCABULARY, WIDTH), "model.norm.weight": torch.ones(WIDTH)}
    for layer in range(LAYERS):
        weights |= {f"model.layers.{layer}.{part}.weight": weight(*shape) for part, shape in shapes.items()}
    Path(local_dir).mkdir(exist_ok=True)
    save_file(weights, f"{local_dir}/model.safetensors")


def main():
    import datasets
    import huggingface_hub
    import transformers

    from tests.ecosystem.programs import picotron_train

    os.environ["DTYPE"] = "float32"
    letters = random.Random(0)
    texts = ["".join(letters.choices("abcdefgh .", k=200)) for _ in range(100)]
    empty_module("wandb")
    for package in ("flash_attn", "flash_attn.layers", "flash_attn.ops", "flash_attn.ops.triton"):
        empty_module(package)
    empty_module("flash_attn.flash_attn_interface", "flash_attn_func")
    empty_module("flash_attn.layers.rotary", "apply_rotary_emb")
    empty_module("flash_attn.ops.triton.layer_norm", "layer_norm_fn")
    datasets.load_dataset = lambda *_, **__: datasets.Dataset.from_dict({"text": texts})
    transformers.AutoTokenizer.from_pretrained = lambda *_: picotron_train.Characters()
    llama = transformers.LlamaConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, vocab_size=VOCABULARY,
    )  # fmt: skip
    llama.rope_theta = 10000.0
    transformers.AutoConfig.from_pretrained = lambda *_: llama
    huggingface_hub.snapshot_download = write_weights
    sys.argv = ["train.py", "--config", write_config(*sys.argv[1:])]
    sys.path.insert(0, os.getcwd())
    runpy.run_path("train.py", run_name="__main__")


if __name__ == "__main__":
    main()
