"""The training loop that everybody copies: the baseline for our own.

A dataset of PIL images, torchvision's transforms, a DataLoader with two workers, float32 in NCHW, SGD, the loss value
read at every step. On CUDA, the model and the batches are moved there; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from _bench import BATCH_SIZE, Clock
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from micronet.training.distillation import distillation_loss

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
NORMALISE = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
TRAINING = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *NORMALISE])
VALIDATION = transforms.Compose(NORMALISE)


class Images(Dataset):
    """(count, 3, 32, 32) uint8 arrays as transformed PIL images."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, transform: Callable):
        self.pixels, self.labels, self.transform = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])


def train(
    model: nn.Module,
    pixels: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    rate: Callable[[int, int], float],
    weight_decay: float,
    teacher: nn.Module | None = None,
    temperature: float = 4.0,
    alpha: float = 0.9,
    device: str = "cpu",
    clock: Clock = lambda images: None,
) -> None:
    """Trains in place. `rate(step, steps)`: a step's learning rate; `clock` may end it with an exception."""
    loader = DataLoader(
        Images(pixels, labels, TRAINING), batch_size=BATCH_SIZE, shuffle=True, num_workers=2, drop_last=True
    )
    model.to(device).train()
    if teacher is not None:
        teacher.to(device).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=weight_decay, nesterov=True)
    steps, step, running = epochs * len(loader), 0, 0.0
    for _ in range(epochs):
        for inputs, targets in loader:
            inputs, targets = inputs.to(device), targets.to(device)
            for group in optimizer.param_groups:
                group["lr"] = rate(step, steps)
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = F.cross_entropy(outputs, targets)
            if teacher is not None:
                with torch.no_grad():
                    answers = teacher(inputs)
                loss = alpha * distillation_loss(outputs, answers, temperature) + (1 - alpha) * loss
            loss.backward()
            optimizer.step()
            running += loss.item()
            step += 1
            clock(step * BATCH_SIZE)


@torch.no_grad()
def accuracy(model: nn.Module, pixels: np.ndarray, labels: np.ndarray) -> float:
    """In percent, on images without augmentation."""
    model.eval()
    loader = DataLoader(Images(pixels, labels, VALIDATION), batch_size=100, num_workers=2)
    correct = sum(int((model(inputs).argmax(1) == targets).sum()) for inputs, targets in loader)
    return 100.0 * correct / len(labels)
