"""Accelerate: a prepared model, optimizer and loader, accumulation, clipping, gathered metrics and objects."""

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed

set_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = torch.nn.Sequential(torch.nn.Linear(20, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
data = torch.utils.data.TensorDataset(torch.randn(250, 20), torch.randint(0, 3, (250,)))
loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
for epoch in range(3):
    for inputs, labels in loader:
        with accelerator.accumulate(model):
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    hits = 0
    for inputs, labels in loader:
        predicted, labels = accelerator.gather_for_metrics((model(inputs).argmax(1), labels))
        hits += int((predicted == labels).sum())
    mean = accelerator.reduce(loss.detach(), reduction="mean")
    print("epoch", epoch, "hits", hits, "loss", repr(mean.item()))
padded = accelerator.pad_across_processes(torch.ones(accelerator.process_index + 1, 2))
print("padded", repr(padded.sum().item()), gather_object([accelerator.process_index]))
print("objects", broadcast_object_list([{"from": accelerator.process_index}]))
accelerator.save_state("state")
accelerator.wait_for_everyone()
accelerator.load_state("state")
accelerator.end_training()
