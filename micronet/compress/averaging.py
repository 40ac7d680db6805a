"""Several networks averaged into one: the mean of the weights of runs that continued from the same trained network.

Runs with a common start stay in one basin of the loss, where the mean of their weights has a lower loss than each run:
model soups, Wortsman et al. 2022, arXiv:2203.05482; why they share a basin, Frankle et al. 2020, arXiv:1912.05671.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from micronet.compress.calibration import recalibrate_batch_norm
from micronet.errors import MicronetError
from micronet.training.weights import plain_weights


class AverageError(MicronetError):
    """Networks that cannot be averaged."""


@torch.no_grad()
def average(networks: Sequence[nn.Module], batches: Iterable[Tensor]) -> nn.Module:
    """The mean network, in eval mode.

    Args:
        networks: two or more that `models.build` made from one spec.
        batches: normalised training images, (N, C, H, W) float32 each, on which the batch norm statistics are measured:
            the statistics of the networks do not fit the mean of their weights.

    Raises:
        AverageError: fewer than two networks, different architectures, or weights that are not finite.
        WeightsError: weights are not plain (see `micronet.training.weights.plain_weights`).
        QuantizationError: there are no images to measure on.
    """
    if len(networks) < 2:
        raise AverageError("a mean needs two checkpoints or more")
    if any(getattr(network, "spec", None) != getattr(networks[0], "spec", None) for network in networks):
        raise AverageError("checkpoints of several architectures have no mean")
    shapes = [[(name, tensor.shape) for name, tensor in network.named_parameters()] for network in networks]
    if any(shape != shapes[0] for shape in shapes):
        raise AverageError("networks whose parameters differ in names or shapes have no mean")
    for network in networks:
        plain_weights(network)
        if not all(parameter.isfinite().all() for parameter in network.parameters()):
            raise AverageError("a network with weights that are not finite has no mean with others")
    mean = copy.deepcopy(networks[0])
    for target, *sources in zip(mean.parameters(), *(network.parameters() for network in networks), strict=True):
        target.copy_(torch.stack(sources).double().mean(0))
    recalibrate_batch_norm(mean, batches)
    return mean.eval()
