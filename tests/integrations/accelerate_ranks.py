"""Script of test_accelerate.py: what accelerate prepares in two processes; rank 0 writes what both saw."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import accelerate
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import mixaug
from mixaug.losses import MixedCrossEntropy

IMAGES, LABELS = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 5


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(IMAGES, LABELS, strict=True))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def weights(module: nn.Module) -> list[float]:
    return [float(parameter.double().sum()) for parameter in module.parameters()]


def prepared(accelerator: accelerate.Accelerator) -> dict[str, Any]:
    """Batches that a collate function has mixed, and steps that accelerate has wrapped."""
    seen: dict[str, Any] = {}
    collate = mixaug.MixCollate(mixaug.create("cutmix"))
    for name, data in (("map", TensorDataset(IMAGES, LABELS)), ("stream", Stream())):
        batches = list(accelerator.prepare(DataLoader(data, 4, collate_fn=collate)))
        assert all(type(mixed) is mixaug.MixedBatch for mixed in batches)
        seen[name] = [mixed.inputs.sum().item() for mixed in batches]
    model = accelerator.prepare(network())
    try:
        mixaug.MixStep(model, mixaug.create("puzzlemix"), MixedCrossEntropy())
    except ValueError as error:
        seen["wrapped"] = str(error)
    step = mixaug.MixStep(network(), mixaug.create("puzzlemix"), MixedCrossEntropy())
    optimizer = torch.optim.SGD(step.parameters(), 0.1)
    loader = DataLoader(TensorDataset(IMAGES, LABELS), 4)
    step, optimizer, loader = accelerator.prepare(step, optimizer, loader)
    for images, labels in loader:
        loss, _ = step(images, labels)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return {**seen, "trained": weights(step), "loss": loss.item(), "start": weights(network())}


def by_the_trainer() -> dict[str, Any]:
    """A policy that looks at the model, in the Trainer under DistributedDataParallel."""
    import transformers

    from mixaug.integrations.huggingface import MixTrainerMixin

    class MixTrainer(MixTrainerMixin, transformers.Trainer):
        pass

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            return {"logits": self.inner(pixel_values)}

    data = [{"pixel_values": image, "labels": label} for image, label in zip(IMAGES, LABELS, strict=True)]
    seen: dict[str, Any] = {}
    for name in ("puzzlemix", "sumix"):
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                folder,
                per_device_train_batch_size=4,
                max_steps=2,
                learning_rate=0.1,
                optim="sgd",
                report_to=[],
                use_cpu=True,
                save_strategy="no",
                disable_tqdm=True,
            )
            trainer = MixTrainer(Model(), arguments, train_dataset=data, policy=mixaug.create(name))
            try:
                trainer.train()
                seen[name] = weights(trainer.model)
            except ValueError as error:
                seen[name] = str(error)
    return {**seen, "start": weights(network())}


def main() -> None:
    configuration = accelerate.DataLoaderConfiguration(dispatch_batches=False)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=configuration)
    seen = by_the_trainer() if sys.argv[1:] == ["trainer"] else prepared(accelerator)
    every: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(every, seen)
    if accelerator.process_index == 0:
        print(json.dumps(every))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
