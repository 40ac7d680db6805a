"""Loss and accuracy of a model on a split."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from micronet.data.images import Split, normalise
from micronet.data.progress import Watch, unwatched
from micronet.training.hardware import Machine
from micronet.training.trial import check_labels, check_split


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    machine: Machine,
    batch_size: int = 500,
    watch: Watch = unwatched,
    title: str = "measuring",
) -> tuple[float, float]:
    """Mean cross entropy and accuracy in percent, in eval mode; the model's mode is restored.

    Args:
        watch: shows how many images are done, with `title`.

    Raises:
        TrainingError: the split is malformed, or has labels that are not classes of the model.
    """
    check_split(split, "measured")
    training = model.training
    model.eval()
    loss, correct = 0.0, 0
    with watch(title, len(split.labels), "images") as told:
        for start in range(0, len(split.labels), batch_size):
            images = normalise(split.images[start : start + batch_size].to(machine.device))
            labels = split.labels[start : start + batch_size].to(machine.device).long()
            with torch.autocast(machine.device.type, torch.bfloat16, enabled=machine.autocast):
                logits = model(images.contiguous(memory_format=machine.memory_format))
            if start == 0:
                check_labels(split.labels, logits.shape[1], "measured")
            loss += F.cross_entropy(logits.float(), labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
            told(min(start + batch_size, len(split.labels)))
    model.train(training)
    return loss / len(split.labels), 100.0 * correct / len(split.labels)
