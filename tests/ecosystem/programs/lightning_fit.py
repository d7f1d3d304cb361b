"""Lightning: a module fitted and validated under DDP, with logged values that are reduced over ranks."""

import lightning
import torch


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(20, 40), torch.nn.BatchNorm1d(40), torch.nn.Linear(40, 1))

    def loss_of(self, batch):
        inputs, targets = batch
        return torch.nn.functional.mse_loss(self.layers(inputs), targets)

    def training_step(self, batch, index):
        loss = self.loss_of(batch)
        print("loss", repr(loss.item()))
        return loss

    def validation_step(self, batch, index):
        self.log("validation", self.loss_of(batch), sync_dist=True)

    def on_validation_epoch_end(self):
        gathered = self.all_gather(torch.tensor([float(self.global_rank)]))
        print("gathered", gathered.flatten().tolist())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


lightning.seed_everything(0)
data = torch.utils.data.TensorDataset(torch.randn(128, 20), torch.randn(128, 1))
loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
trainer = lightning.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=3, logger=False, enable_progress_bar=False,
    gradient_clip_val=1.0, sync_batchnorm=False,
)  # fmt: skip
module = Module()
trainer.fit(module, loader, torch.utils.data.DataLoader(data, batch_size=16))
print("validation", repr(trainer.callback_metrics["validation"].item()))
torch.distributed.destroy_process_group()
