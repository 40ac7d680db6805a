"""One training run in several processes (ranks): each computes the gradient of its share of every batch.

Data parallelism with one sum per step, over gloo on CPUs and NCCL on GPUs (Li et al. 2020, arXiv:2006.15704). Not
torch's DistributedDataParallel: it reorders its buckets after the first step, so three ranks would sum in a different
order in a resumed run. After every step, all ranks hold the same weights, batch norm statistics and masks.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from micronet.training.hardware import Machine
from micronet.training.processes import Member

LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # works even if the host name resolves to another address, or none
PATIENCE = timedelta(days=1)  # long enough for the first rank to evaluate; a dead rank is noticed in another way

T = TypeVar("T")


class Ranks:
    """The ranks of a run, as seen by one of them. In this class it is the only one and computes everything."""

    size = 1

    def of_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank; it is not called on the others."""
        return make()

    def same(self, give: Callable[[], dict[str, Any]], take: Callable[[dict[str, Any]], Any]) -> None:
        """Passes what the first rank gives to `take` on every other: tensors, numbers and containers of them."""

    def begin(self, model: nn.Module, seed: int) -> None:
        """Begins a step. Dropout draws depend only on `seed`, which identifies the step, and the rank, not on what was
        drawn before, so a resumed run draws the same."""
        torch.manual_seed(seed % 2**63)

    def share(self, count: int) -> slice:
        """This rank's part of a batch of `count` images."""
        return slice(None)

    def backward(self, loss: Tensor, part: int, count: int) -> None:
        """Computes what `part` of the images contribute to the gradients of the mean loss of all `count`."""
        loss.backward()

    def sum(self, model: nn.Module, others: Sequence[Tensor]) -> None:
        """Sums the gradients over the ranks, and averages the buffers (batch norm statistics) over them.

        Args:
            others: float32 tensors, which are summed over the ranks too.
        """


class _Several(Ranks):
    """Ranks that reach each other through the default process group."""

    def __init__(self, member: Member):
        self.member, self.rank, self.size = member, member.rank, member.size
        self.before: list[Tensor] = []  # the buffers at the start of the step

    def _reach(self, collective: Callable[[], Any]) -> None:
        """Calls a collective operation. Raises an error that says so if a rank is gone."""
        try:
            collective()
        except RuntimeError as error:  # torch raises nothing more specific
            raise self.member.lost(" ".join(str(error).split())) from None

    def of_first(self, make: Callable[[], T]) -> T:
        told: list[Any] = [make() if self.rank == 0 else None]
        self._reach(lambda: dist.broadcast_object_list(told, src=0))
        return told[0]

    def same(self, give: Callable[[], dict[str, Any]], take: Callable[[dict[str, Any]], Any]) -> None:
        data = self.of_first(lambda: _saved(give()))
        if self.rank:
            take(torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"))

    def begin(self, model: nn.Module, seed: int) -> None:
        torch.manual_seed((seed * self.size + self.rank) % 2**63)
        self.before = [buffer.clone() for buffer in _float_buffers(model)]

    def share(self, count: int) -> slice:
        each, rest = divmod(count, self.size)
        start = self.rank * each + min(self.rank, rest)
        return slice(start, start + each + (self.rank < rest))

    def backward(self, loss: Tensor, part: int, count: int) -> None:
        loss.backward(gradient=torch.full_like(loss, part / count))

    @torch.no_grad()
    def sum(self, model: nn.Module, others: Sequence[Tensor]) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        absent = [index for index, each in enumerate(trained) if each.grad is None]  # not used by the network
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
        buffers = _float_buffers(model)
        # The change of a buffer is averaged, not its value, so a constant stays the same to the bit.
        changes = [(buffer - before) / self.size for buffer, before in zip(buffers, self.before, strict=True)]
        used = torch.ones(len(trained), device=gradients[0].device)
        used[absent] = 0
        summed = [*gradients, *changes, used, *others]
        flat = torch.cat([each.reshape(-1) for each in summed])
        self._reach(lambda: dist.all_reduce(flat))
        for mine, all_of_it in zip(summed, flat.split([each.numel() for each in summed]), strict=True):
            mine.copy_(all_of_it.view(mine.shape))
        for buffer, before, change in zip(buffers, self.before, changes, strict=True):
            buffer.copy_(before + change)
        for index in absent:
            if used[index]:  # by another rank
                trained[index].grad = gradients[index]


@contextmanager
def joined(member: Member, machine: Machine) -> Iterator[Ranks]:
    """The ranks of a stage, once all of them have arrived here."""
    if member.size == 1:
        yield Ranks()
        return
    member.begin()
    if sys.platform in LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])
    backend = "cpu:gloo,cuda:nccl" if machine.device.type == "cuda" else "gloo"
    store = dist.FileStore(str(member.store), member.size)
    dist.init_process_group(backend, store=store, rank=member.rank, world_size=member.size, timeout=PATIENCE)
    try:
        yield _Several(member)
    finally:
        dist.destroy_process_group()


def _float_buffers(model: nn.Module) -> list[Tensor]:
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def _saved(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
