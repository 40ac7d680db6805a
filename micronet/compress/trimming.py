"""Zeros where they save the most cost for the least accuracy, while a network trains at low bits.

A magnitude says little about how important a weight is, and a count of zeros little about what they save: a packed file
has one bit for each 3x3 kernel, 3 for the rows of each nonzero kernel, 3 for the weights of each nonzero row, and then
the codes. So the last weight of a kernel saves three times the storage of one among nine, and a weight of an early
layer a hundred times the operations of one of the last. Here single weights, rows and whole kernels are ranked by the
rise in loss, to second order, per unit of the challenge's price: optimal brain damage (LeCun et al. 1990) with squared
gradients for the curvature, as in Theis et al. 2018 (arXiv:1801.05787), here of the mean loss of a batch, and with the
price in the denominator, as in Yang et al. 2017 (arXiv:1611.05128).

The price is an estimate, good to a few percent: a use costs an addition one bit wider than the codes that the layer
reads (a factored sum has only a few multiplications per output), every layer is assumed to have a mask, of kernels and
rows if it is 3x3, and second passes are ignored.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from micronet.compress.pruning import GRADUAL_UPDATES, FixedMask, rising
from micronet.compress.quantizers import InputCodes, LsqActivation, LsqWeight
from micronet.errors import MicronetError
from micronet.params import Quantize
from micronet.training.constraints import MASK
from micronet.training.weights import positions, prunable

TRIMMED_AFTER = 0.5  # share of the steps after which all is trimmed; in the rest the network recovers as the rate falls
SQUARES_DECAY = 0.99  # of the running mean of squared gradients: about the last 100 steps
# One bit of an operation's width, in bits of storage: the reference's parameters over its operations.
OPERATION_BIT = 5_586_981 / 834_362_880
WHOLE_PIXEL = 8  # bits of an image's value where nothing quantizes it
MASK_BITS = 3  # for a kernel's rows, or for a row's weights


class TrimmingError(MicronetError):
    """No gradient was seen, so the effect on the loss is unknown."""


def weight_prices(prepared: fx.GraphModule) -> dict[str, float]:
    """The cost of a nonzero weight, without its mask, in each layer that trains; in bits of storage.

    Its code, of which only a sign is left where the mask already tells 0 from -1 and 1, and one addition per output
    position.
    """
    uses, read, prices = positions(prepared, prepared.meta["image"]), _bits_read(prepared), {}
    for name, module in prunable(prepared):
        quantizer = getattr(module, "quantizer", None)
        if isinstance(quantizer, LsqWeight) and module.weight.requires_grad:
            code_bits = 1 if quantizer.high == 1 else quantizer.bits
            prices[name] = code_bits + uses[name] * (read[name] + 1) * OPERATION_BIT
    return prices


def _bits_read(prepared: fx.GraphModule) -> dict[str, int]:
    """The bits of the codes that each module reads, by its name: of the widest of the nearest quantizers before it."""
    modules, made, read = dict(prepared.named_modules()), dict[fx.Node, int](), {}
    for node in prepared.graph.nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        before = max((made[source] for source in node.all_input_nodes), default=WHOLE_PIXEL)
        read[str(node.target)] = before
        made[node] = module.bits if isinstance(module, InputCodes | LsqActivation) else before
    return read


def _in_rows(weight: Tensor) -> Tensor:
    """(kernels, 3, 3) for 3x3 convolutions, whose masks have blocks; (weights, 1, 1) for other layers."""
    return weight.reshape(-1, 3, 3) if weight.shape[2:] == (3, 3) else weight.reshape(-1, 1, 1)


def _mask_price(alive: Tensor) -> Tensor:
    """Mask bits inside each kernel's block, (kernels,) float64; 0 for layers without blocks."""
    rows = alive.any(2).sum(1)
    if alive.shape[2] == 1:
        return torch.zeros_like(rows, dtype=torch.float64)
    return MASK_BITS * ((rows > 0).double() + rows.double())


def layer_price(alive: Tensor, weight_price: float) -> float:
    """Bits that a layer's nonzero weights cost; `alive` (O, I, ...) bool, `weight_price` as `weight_prices` gives."""
    return float(alive.sum()) * weight_price + float(_mask_price(_in_rows(alive)).sum())


def candidates(saliency: Tensor, alive: Tensor, weight_price: float) -> tuple[Tensor, Tensor, Tensor]:
    """In every kernel, the removal with the least loss for its price: of the kernel, of a row, or of one weight.

    Args:
        saliency: how much the loss rises without the weight, >= 0, shaped like the weight.
        alive: which weights are not zero, shaped like the weight.
        weight_price: the price of a weight without its mask, in bits.

    Returns:
        saliency per bit of price, (kernels,), infinite where nothing is left; bits saved, (kernels,); what is removed,
        (kernels, 3, 3) bool. In layers without 3x3 kernels every weight is one.
    """
    alive = _in_rows(alive)
    saliency = _in_rows(saliency).double() * alive
    side = alive.shape[2]
    row_bits = MASK_BITS if side > 1 else 0
    count = alive.sum(2).double()
    whole, rows = count.sum(1) * weight_price + _mask_price(alive), count * weight_price + row_bits
    bits = torch.cat([whole[:, None], rows, torch.full_like(saliency, weight_price).flatten(1)], 1)
    loss = torch.cat([saliency.sum((1, 2))[:, None], saliency.sum(2), saliency.flatten(1)], 1)
    possible = torch.cat([alive.any(2).any(1)[:, None], alive.any(2), alive.flatten(1)], 1)
    ratio = torch.where(possible, loss / bits, math.inf)
    best = ratio.argmin(1, keepdim=True)
    cells = torch.eye(side * side, dtype=torch.bool, device=alive.device).reshape(-1, side, side)
    lines = torch.eye(side, dtype=torch.bool, device=alive.device)[:, :, None].expand(side, side, side)
    taken = torch.cat([torch.ones_like(cells[:1]), lines, cells])[best[:, 0]]
    return ratio.gather(1, best)[:, 0], bits.gather(1, best)[:, 0], taken


@torch.no_grad()
def cheapest(
    saliency: dict[str, Tensor], alive: dict[str, Tensor], prices: dict[str, float], bits: float
) -> dict[str, Tensor]:
    """What to remove so that `bits` are saved and the loss rises least: True where a weight goes, by layer.

    Greedy: what costs the least loss for its price goes first. Every layer keeps its most salient weight.

    Args:
        saliency, alive: as for `candidates`, by layer.
        prices: as `weight_prices` gives them.
    """
    alive = {name: mask.clone() for name, mask in alive.items()}
    gone = {name: torch.zeros_like(mask) for name, mask in alive.items()}
    kept = {}
    for name, mask in alive.items():
        values = saliency[name].double().where(mask, -1.0).flatten()
        values[values.argmax()] = math.inf
        kept[name] = values.clamp(min=0.0).reshape(mask.shape)
    missing = bits
    while missing > 0:
        found = {name: candidates(kept[name], mask, prices[name]) for name, mask in alive.items()}
        ratio, saving = (torch.cat([part[index] for part in found.values()]) for index in (0, 1))
        ratio, order = torch.sort(ratio, stable=True)
        total = saving[order].cpu().cumsum(0).to(saving.device)  # CUDA has no deterministic cumsum
        # At most half of what is missing at once: a kernel that has lost its cheapest part is ranked again.
        now = (total <= missing / 2) & ratio.isfinite()
        now[0] = ratio[0].isfinite()
        if not now[0]:
            break
        missing -= float(total[now][-1])
        taken = torch.zeros_like(now).index_fill_(0, order[now], True)
        for (name, (_, _, cells)), mine in zip(
            found.items(), taken.split([len(part[0]) for part in found.values()]), strict=True
        ):
            cells = (cells & mine[:, None, None]).reshape(alive[name].shape)
            gone[name] |= cells
            alive[name] &= ~cells
    return gone


class Trimming(FixedMask):
    """A constraint: zeros stay, and their number grows until a share of the weights' price is saved.

    The share rises cubically, as in gradual pruning, over the first half of the steps. The squared gradients are those
    of the quantized weights: a weight beyond the last code has no gradient of its own.
    """

    def __init__(self, model: nn.Module, prepared: fx.GraphModule, section: Quantize):
        """
        Args:
            model: its zeros stay zero.
            prepared: the same with quantizers, to be trained; gets hooks that read its gradients.
            section: `trim` is a share of the initial price of the weights that train and are not code 0.
        """
        super().__init__(model)
        self.share, self.step = section.trim, 0  # the last step seen
        self.prices = weight_prices(prepared)
        # Weights that round to 0 cost nothing already. They go first, because the loss does not depend on them.
        self.total = sum(
            layer_price(module.quantizer.codes(module.weight)[0] != 0, self.prices[name])
            for name, module in self._layers(prepared)
        )
        self._squares: dict[str, Tensor] = {}
        self._seen: list[tuple[str, Tensor]] = []  # gradients not yet in the squares, by layer
        for name, module in self._layers(prepared):
            self._squares[name] = torch.zeros_like(module.weight, requires_grad=False)
            self._watch(name, module.quantizer)

    def price(self) -> float:
        """Bits that the unmasked weights cost now."""
        return sum(layer_price(self.masks[name], each) for name, each in self.prices.items())

    def _layers(self, prepared: nn.Module) -> list[tuple[str, Any]]:
        """Layers with a quantizer (typed Any: torch's types do not know it)."""
        return [(name, module) for name, module in prunable(prepared) if name in self.prices]

    def _watch(self, name: str, quantizer: nn.Module) -> None:
        def remember(gradient: Tensor) -> None:
            self._seen.append((name, gradient))

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad and module is quantizer:  # a copy, which has this hook too, does not count
                output.register_hook(remember)

        quantizer.register_forward_hook(hook)

    def gradients(self) -> list[Tensor]:
        return [gradient for _, gradient in self._seen]

    @property
    def squares(self) -> dict[str, Tensor]:
        """Running means of the squared gradients of the quantized weights, by layer."""
        seen, self._seen = self._seen, []
        for name, gradient in seen:
            squares = self._squares[name].to(gradient.device)
            self._squares[name] = squares.lerp_(gradient.square(), 1 - SQUARES_DECAY)
        return self._squares

    def before_step(self, model: nn.Module) -> None:
        _ = self.squares  # so that gradients are released early

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        if step > self.step:  # else these are averaged weights
            self.step = step
            if step % max(1, steps // GRADUAL_UPDATES) == 0:
                self._trim(model, self.total * (1 - rising(self.share, step / (TRIMMED_AFTER * steps))))
        super().after_step(model, step, steps)

    def _trim(self, model: nn.Module, wanted: float) -> None:
        """Removes weights until the rest costs `wanted` bits."""
        excess = self.price() - wanted
        if excess <= 0:
            return
        if not any(squares.any() for squares in self.squares.values()):
            raise TrimmingError("quantize.trim: no gradient of a quantized weight was seen; engine.compile: off helps")
        saliency, alive = {}, {}
        for name, module in self._layers(model):
            saliency[name] = module.quantizer(module.weight).square() * self.squares[name].to(module.weight.device)
            alive[name] = self.masks[name].to(module.weight.device)
        for name, gone in cheapest(saliency, alive, self.prices, excess).items():
            self.masks[name] = alive[name] & ~gone

    def state(self) -> dict[str, Tensor]:
        masks = {MASK + name: mask for name, mask in self.masks.items()}
        squares = {f"squares {name}": square for name, square in self.squares.items()}
        return masks | squares | {"step": torch.tensor(self.step)}

    def load(self, state: dict[str, Tensor]) -> None:
        self.step = int(state["step"])
        self._squares = {name: state[f"squares {name}"] for name in self.squares}
        self.masks = {name: state[MASK + name] for name in self.masks}
