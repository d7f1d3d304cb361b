"""The Transformers Trainer: a small GPT-2 made from its configuration, trained, evaluated and saved."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

set_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2))
tokens = torch.randint(0, 64, (96, 32))
data = [{"input_ids": row, "labels": row} for row in tokens]


class Print(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **_):
        kept = {name: value for name, value in logs.items() if name in ("loss", "grad_norm", "eval_loss", "train_loss")}
        print("log", *(f"{name} {value!r}" for name, value in kept.items()))


arguments = TrainingArguments(
    output_dir="trained", use_cpu=True, max_steps=20, per_device_train_batch_size=8, logging_steps=1,
    eval_strategy="steps", eval_steps=10, save_steps=10, report_to=[], disable_tqdm=True, seed=0,
)  # fmt: skip
trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data[:16], callbacks=[Print()])
trainer.train()
torch.distributed.destroy_process_group()
