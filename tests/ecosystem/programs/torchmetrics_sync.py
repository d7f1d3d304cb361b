"""torchmetrics: states that are summed, gathered and concatenated over ranks, with uneven and empty shares."""

import torch
import torch.distributed as dist
import torchmetrics
from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)
metrics = {
    "accuracy": torchmetrics.Accuracy(task="multiclass", num_classes=5),
    "confusion": MulticlassConfusionMatrix(num_classes=5),
    "area": MulticlassAUROC(num_classes=5),
}
regression = {
    "squared error": torchmetrics.MeanSquaredError(),
    "pearson": torchmetrics.PearsonCorrCoef(),
    "spearman": torchmetrics.SpearmanCorrCoef(),
    "maximum": torchmetrics.MaxMetric(),
    "everything": torchmetrics.CatMetric(),
}
for batch in range(3 + 2 * rank):
    scores, labels = torch.randn(16 + batch, 5).softmax(1), torch.randint(0, 5, (16 + batch,))
    for metric in metrics.values():
        metric.update(scores, labels)
    predicted, target = torch.randn(16 + batch), torch.randn(16 + batch)
    for name, metric in regression.items():
        metric.update(*((predicted,) if name in ("maximum", "everything") else (predicted, target)))
collection = torchmetrics.MetricCollection({**metrics, **regression})
for name, value in collection.compute().items():
    print("metric", name, repr(value.double().flatten().tolist()))
only_rank_0 = torchmetrics.CatMetric()
if rank == 0:
    only_rank_0.update(torch.randn(7))
print("metric", "of one rank", repr(only_rank_0.compute()))
dist.destroy_process_group()
