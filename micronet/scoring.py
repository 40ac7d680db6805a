"""What a model costs, under two rule books, from one list of operation records.

Deck rules count the architecture as it was designed: weight width and sparsity matter, the hardware does not.
Challenge rules (MicroNet Challenge, NeurIPS 2019) count what one image really needs: multiplications and additions
apart, each by its width, zeros of the weights skipped, every stored bit. Both are relative to a ResNet-18 in 16 bits;
lower is better. `operations` makes the records from a module with assumed widths, or from a packed file.

Choices that the rules leave open, and this file takes: an output with n > 0 non-zero weights takes n multiplications
and n - 1 additions, one more for a bias, unless a packed file sums the inputs of equal weights first (docs/format.md);
without any non-zero weight it is a constant and takes none. Padding counts like any other input. A ReLU costs 1
whatever its width; a maximum of n values n - 1 additions at their width.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import operator
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

import models
from micronet.errors import MicronetError
from micronet.packed import PackedModel
from micronet.reference import packed_operations
from models.layers import Interleave

if TYPE_CHECKING:
    from rich.table import Table

# ResNet-18 for CIFAR-10 at 16 bits (deck rules), and the challenge's own WideResNet-28-10 for CIFAR-100.
REFERENCE_OPERATIONS, REFERENCE_PARAMETERS = 834_362_880, 5_586_981
REFERENCE_100_OPERATIONS, REFERENCE_100_PARAMETERS = 10_490_000_000, 36_500_000

ONCE = (1.0,)  # a network that sees every image once

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)


class ScoreError(MicronetError):
    """A model that cannot be priced, or whose price two counters disagree on, in one line."""


@dataclass(frozen=True)
class Operation:
    """One step of inference on one image, with all that either rule book asks."""

    name: str
    kind: Literal["conv", "linear", "batch_norm", "relu", "add", "pool", "affine", "requantize"]
    output_shape: tuple[int, ...]  # (C, H, W) or (C,)
    input_shape: tuple[int, ...]
    kernel: int = 1
    groups: int = 1
    bias: bool = False  # as designed: a folded batch norm does not set it
    weights: int = 0  # conv, linear: entries of the dense weight
    nonzeros: int = 0
    norm_parameters: int = 0  # as designed: 2C for a batch norm
    bias_parameters: int = 0
    weight_bits: int = 32
    activation_bits: int = 32
    accumulator_bits: int = 32
    vector_bits: int = 32  # width of stored biases and norm parameters
    multiplications: tuple[tuple[int, int], ...] = ()  # (bits, count) really done, challenge rules
    additions: tuple[tuple[int, int], ...] = ()
    storage_bits: int = 0  # bits that this operation takes in the file, challenge rules
    rules: Literal["both", "deck", "challenge"] = "both"  # a folded batch norm is "deck" only
    network: int = 0  # of a cascade, whose later networks see only some of the images


@dataclass(frozen=True)
class DeckScore:
    """`flops` and `params` in 32-bit units, cut to whole numbers; scores relative to ResNet-18 at 16 bits."""

    flops: int
    params: int
    score_flops: float
    score_params: float
    score: float


@dataclass(frozen=True)
class ChallengeScore:
    """`ops` and `params` in 32-bit units; scores relative to the challenge's reference for the class count."""

    ops: float
    params: float
    score_ops: float
    score_params: float
    score: float


def macs(ops: Iterable[Operation]) -> int:
    """Multiply-accumulates of one image's convolutions and linear layers, zeros included."""
    return sum(op.weights * math.prod(op.output_shape[1:]) for op in ops)


def nonzero_macs(ops: Iterable[Operation]) -> int:
    """Multiply-accumulates whose weight is not zero."""
    return sum(op.nonzeros * math.prod(op.output_shape[1:]) for op in ops)


def deck_flops(op: Operation) -> int:
    """Operations of one record under deck rules, in integers so that no sum depends on rounding."""
    if op.rules == "challenge":
        return 0
    inputs = op.kernel**2 * op.input_shape[0]
    if op.kind == "conv":
        each = inputs * op.weight_bits + 32 * (inputs - 1) + 32 * op.groups * op.bias
        return math.prod(op.output_shape) * each // (32 * op.groups)
    if op.kind == "linear":
        return op.output_shape[0] * (inputs * op.weight_bits + 32 * (inputs - 1)) // 32
    return 3 * math.prod(op.input_shape) if op.kind == "batch_norm" else 0


def _deck_bits(op: Operation) -> int:
    if op.rules == "challenge":
        return 0
    return op.weights * op.weight_bits + (op.norm_parameters + op.bias_parameters) * op.vector_bits


def _mean(ops: Iterable[Operation], passes: Sequence[float], count: Callable[[Operation], float]) -> float:
    """The count of all operations, mean of the images."""
    totals: dict[int, float] = {}
    for op in ops:
        totals[op.network] = totals.get(op.network, 0) + count(op)
    return sum(passes[network] * total for network, total in totals.items())


def deck_score(ops: Sequence[Operation], passes: Sequence[float] = ONCE) -> DeckScore:
    """The score that the slide deck's 0.0357 is measured with.

    A weight of -1, 0 and 1 has 1 bit here, as the packed file stores it: that it has zeros is the sparsity's business.
    The share of zeros among the weights of convolutions and linear layers takes that share off all parameters, as
    the deck did, and nothing off the operations.

    Args:
        passes: through each network, mean of the images.
    """
    flops = int(_mean(ops, passes, deck_flops))
    weights, nonzeros = sum(op.weights for op in ops), sum(op.nonzeros for op in ops)
    bits = sum(_deck_bits(op) for op in ops)
    params = bits * nonzeros // (32 * weights) if weights else bits // 32
    score_flops, score_params = flops / REFERENCE_OPERATIONS, params / REFERENCE_PARAMETERS
    return DeckScore(flops, params, score_flops, score_params, score_flops + score_params)


def challenge_ops(op: Operation) -> float:
    """Operations of one record under challenge rules: each multiplication and addition by its bits / 32."""
    if op.rules == "deck":
        return 0.0
    return sum(bits * count for bits, count in (*op.multiplications, *op.additions)) / 32


def _challenge_reference(ops: Sequence[Operation]) -> tuple[int, int]:
    """(operations, parameters) of the reference for the number of classes: CIFAR-100's for 100, else CIFAR-10's."""
    classes = [op.output_shape[0] for op in ops if op.kind == "linear"][-1:]
    if classes == [100]:
        return REFERENCE_100_OPERATIONS, REFERENCE_100_PARAMETERS
    return REFERENCE_OPERATIONS, REFERENCE_PARAMETERS


def challenge_score(ops: Sequence[Operation], passes: Sequence[float] = ONCE) -> ChallengeScore:
    """The score of the MicroNet Challenge: what an image costs in the mean, and every bit that inference needs.

    Args:
        passes: through each network, mean of the test images: above 1 where some images are seen mirrored too, below
            where a network sees only those that the ones before are unsure of.
    """
    count = _mean(ops, passes, challenge_ops)
    params = sum(op.storage_bits for op in ops if op.rules != "deck") / 32
    reference_ops, reference_params = _challenge_reference(ops)
    score_ops, score_params = count / reference_ops, params / reference_params
    return ChallengeScore(count, params, score_ops, score_params, score_ops + score_params)


def operations(
    model: Any,
    *,
    weight_bits: int = 16,
    activation_bits: int | None = None,
    accumulator_bits: int = 32,
    vector_bits: int | None = None,
) -> list[Operation]:
    """The operations of one (3, 32, 32) image, in the order of the work.

    Args:
        model: a packed model or its module, whose zeros and widths are those of the file; or any other module, whose
            zeros are its real ones (on the meta device it counts as dense) and whose widths are the ones given here.
        weight_bits: of convolutions and linear layers.
        activation_bits: None is unquantized: 16 bits as long as the weights are not below 16 (the challenge's
            freebie for float models), 32 otherwise.
        accumulator_bits: width that sums are charged at. Claim less than 32 only where it is proven.
        vector_bits: of biases and batch norms; None is `weight_bits`, as the deck counts every parameter.

    Raises:
        ScoreError: an operation without a price.
    """
    packed = getattr(model, "packed", model)
    if isinstance(packed, PackedModel):
        return [Operation(**record) for record in packed_operations(packed)]
    widths = _Widths.assume(weight_bits, activation_bits, accumulator_bits, vector_bits)
    if not isinstance(model, nn.Module):
        raise ScoreError(f"a {type(model).__name__} has no price; a module has")
    return _module_operations(model, widths)


@dataclass(frozen=True)
class _Widths:
    weight: int
    activation: int
    accumulator: int
    vector: int
    quantized: bool

    @classmethod
    def assume(cls, weight: int, activation: int | None, accumulator: int, vector: int | None) -> _Widths:
        for name, bits in (("weight_bits", weight), ("activation_bits", activation), ("vector_bits", vector)):
            if bits is not None and bits not in WIDTHS:
                raise ScoreError(f"{name}: must be 1 to 8, 16 or 32 (got {bits})")
        if not 1 <= accumulator <= 32:
            raise ScoreError(f"accumulator_bits: must be from 1 to 32 (got {accumulator})")
        quantized = weight < 16 or (activation is not None and activation < 16)
        if activation is None:
            activation = 16 if weight == 16 else 32
        return cls(weight, activation, accumulator, weight if vector is None else vector, quantized)

    @property
    def sum_product(self) -> int:
        """Bits of a product with a factor that comes out of an accumulator."""
        return self.accumulator if self.quantized else self.activation


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Interleave) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.GraphModule:
    """The graph with every node's shape for one image. On the meta device: no arithmetic, the model stays as it is."""
    shadow = copy.deepcopy(model).to("meta").eval()
    try:
        graph = fx.GraphModule(shadow, _Tracer().trace(shadow))
    except Exception as error:  # a forward that branches on values fails in many ways
        raise ScoreError(f"{type(model).__name__}: cannot be traced: {' '.join(str(error).split())}") from None
    dtype = next((parameter.dtype for parameter in shadow.parameters()), torch.float32)
    ShapeProp(graph).propagate(torch.zeros(1, 3, 32, 32, device="meta", dtype=dtype))
    return graph


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape[1:])


def _weighted(name: str, layer: nn.Conv2d | nn.Linear, node: fx.Node, folded: bool, widths: _Widths) -> Operation:
    """A convolution or linear layer; `folded`: the batch norm behind it becomes its scale and bias."""
    source, output = _shape(node.args[0]), _shape(node)
    kernel, groups = 1, 1
    if isinstance(layer, nn.Conv2d):
        if layer.kernel_size[0] != layer.kernel_size[1]:
            raise ScoreError(f"{name}: only square kernels have a price (got {layer.kernel_size})")
        kernel, groups = layer.kernel_size[0], layer.groups
    elif len(source) != 1:
        raise ScoreError(f"{name}: a linear layer must see one vector an image (got {source})")
    if layer.weight.is_meta:
        nonzeros, live_rows = layer.weight.numel(), output[0]
    else:
        row_nonzeros = layer.weight.detach().ne(0).flatten(1).sum(1)
        nonzeros, live_rows = int(row_nonzeros.sum()), int(row_nonzeros.ne(0).sum())
    positions = math.prod(output[1:])
    biased = layer.bias is not None or folded
    weights = layer.weight.numel()
    return Operation(
        name,
        "conv" if isinstance(layer, nn.Conv2d) else "linear",
        output,
        source,
        kernel=kernel,
        groups=groups,
        bias=layer.bias is not None,
        weights=weights,
        nonzeros=nonzeros,
        bias_parameters=0 if layer.bias is None else layer.bias.numel(),
        weight_bits=widths.weight,
        activation_bits=widths.activation,
        accumulator_bits=widths.accumulator,
        vector_bits=widths.vector,
        multiplications=((max(widths.weight, widths.activation), nonzeros * positions),),
        additions=((widths.accumulator, (nonzeros if biased else nonzeros - live_rows) * positions),),
        storage_bits=min(weights * widths.weight, nonzeros * widths.weight + weights)
        + (output[0] * widths.vector if biased else 0),
    )


def _norm(name: str, layer: nn.BatchNorm2d, node: fx.Node, folded: bool, widths: _Widths) -> Operation:
    """A batch norm: a multiply-add an element, or nothing under challenge rules where it folds."""
    shape = _shape(node)
    entries = sum(parameter.numel() for parameter in layer.parameters())
    op = Operation(
        name,
        "batch_norm",
        shape,
        shape,
        norm_parameters=entries,
        activation_bits=widths.activation,
        accumulator_bits=widths.accumulator,
        vector_bits=widths.vector,
    )
    if folded:
        return replace(op, rules="deck")
    elements = math.prod(shape)
    return replace(
        op,
        multiplications=((max(widths.vector, widths.activation), elements),),
        additions=((widths.accumulator, elements),),
        # Scale and shift a channel, also when the norm learns none: the statistics are needed at inference.
        storage_bits=2 * shape[0] * widths.vector,
    )


def _pool(name: str, node: fx.Node, window: int, widths: _Widths) -> Operation:
    output = _shape(node)
    elements = math.prod(output)
    return Operation(
        name,
        "pool",
        output,
        _shape(node.args[0]),
        multiplications=((widths.sum_product, elements),),
        additions=((widths.accumulator, elements * (window - 1)),),
        rules="challenge",
    )


def _window(name: str, node: fx.Node) -> int:
    """Inputs averaged into one output."""
    if node.op == "call_function":
        kernel = node.args[1] if len(node.args) > 1 else node.kwargs["kernel_size"]
        return kernel**2 if isinstance(kernel, int) else math.prod(kernel)
    dimensions = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    source = _shape(node.args[0])
    if not isinstance(dimensions, list | tuple) or len(source) != 3 or {d % 4 for d in dimensions} != {2, 3}:
        raise ScoreError(f"{name}: only a mean over height and width has a price (got dimensions {dimensions})")
    return math.prod(source[1:])


_RELU = (F.relu, torch.relu, "relu")
_ADD = (operator.add, operator.iadd, torch.add, "add")
_POOL = (F.avg_pool2d, "mean")
_MAX_POOL = (F.max_pool2d,)
_SCALE = (operator.mul,)
_FREE = (torch.cat, torch.flatten, "flatten", "view", "reshape", "size")


def _module_operations(model: nn.Module, widths: _Widths) -> list[Operation]:
    graph = _trace(model)
    modules = dict(model.named_modules())
    ops: list[Operation] = []
    names: dict[fx.Node, str] = {}

    def layer_of(node: Any) -> nn.Module | None:
        return modules[node.target] if isinstance(node, fx.Node) and node.op == "call_module" else None

    for node in graph.graph.nodes:
        if node.op in ("placeholder", "output"):
            names[node] = node.name
            continue
        inputs = node.all_input_nodes
        before = names[inputs[0]] if inputs else ""
        scope = before.rpartition(".")[0]
        layer = layer_of(node)
        if layer is not None:
            name = names[node] = node.target
            if any(op.name == name for op in ops):
                raise ScoreError(f"{name}: is used twice, and its parameters would be counted twice")
            users = list(node.users)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                folded = len(users) == 1 and isinstance(layer_of(users[0]), nn.BatchNorm2d)
                ops.append(_weighted(name, layer, node, folded, widths))
                if widths.quantized and isinstance(layer, nn.Conv2d):
                    # Sums become codes of the next layer. Logits need none: their order is the answer.
                    ops.append(_requantize(name, _shape(node), widths))
            elif isinstance(layer, nn.BatchNorm2d):
                folded = isinstance(layer_of(inputs[0]), nn.Conv2d) and len(inputs[0].users) == 1
                ops.append(_norm(name, layer, node, folded, widths))
            elif isinstance(layer, nn.Identity | Interleave):
                names[node] = before  # a permutation is absorbed into its neighbours' weight order
            else:
                raise ScoreError(f"{name}: {type(layer).__name__} has no price here (use functions for ReLU and pools)")
        elif node.target in _RELU:
            names[node] = f"{before}.relu"
            shape = _shape(node)
            ops.append(
                Operation(names[node], "relu", shape, shape, additions=((32, math.prod(shape)),), rules="challenge")
            )
        elif node.target in _ADD and len(inputs) == 2:
            names[node] = f"{scope}.add".lstrip(".")
            shape = _shape(node)
            added = ((widths.accumulator, math.prod(shape)),)
            ops.append(Operation(names[node], "add", shape, shape, additions=added, rules="challenge"))
        elif node.target in _POOL:
            names[node] = f"{before}.pool"
            ops.append(_pool(names[node], node, _window(names[node], node), widths))
        elif node.target in _MAX_POOL:  # a comparison is a subtraction of which the sign counts
            names[node], shape = f"{before}.max", _shape(node)
            compared = ((widths.activation, math.prod(shape) * (_window(names[node], node) - 1)),)
            ops.append(Operation(names[node], "pool", shape, _shape(inputs[0]), additions=compared, rules="challenge"))
        elif node.target in _SCALE and sum(isinstance(value, fx.Node) for value in node.args) == 1:  # by a constant
            names[node], shape = f"{before}.scale", _shape(node)
            scaled = ((widths.sum_product, math.prod(shape)),)
            ops.append(Operation(names[node], "affine", shape, shape, multiplications=scaled, rules="challenge"))
        elif node.target in _FREE:
            names[node] = f"{scope}.{node.name}".lstrip(".") if node.target is torch.cat else before
        else:
            target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
            raise ScoreError(f"{node.name}: the operation {target} has no price here (after {before})")

    counted = sum(op.weights + op.norm_parameters + op.bias_parameters for op in ops)
    total = sum(parameter.numel() for parameter in model.parameters())
    if counted != total:
        raise ScoreError(f"{type(model).__name__}: {total - counted} of {total} parameters belong to no operation")
    return ops


def _requantize(name: str, shape: tuple[int, ...], widths: _Widths) -> Operation:
    """Scales sums to the next layer's codes: one multiplication an output, one stored scale a channel."""
    return Operation(
        f"{name}.requantize",
        "requantize",
        shape,
        shape,
        activation_bits=widths.activation,
        accumulator_bits=widths.accumulator,
        vector_bits=widths.vector,
        multiplications=((widths.accumulator, math.prod(shape)),),
        storage_bits=shape[0] * widths.vector,
        rules="challenge",
    )


def cross_check_macs(model: nn.Module) -> int:
    """The MACs of a module as ptflops counts them (backend aten, biases taken off).

    Raises:
        ScoreError: they differ from ours.
    """
    from ptflops import get_model_complexity_info

    ops = operations(model)
    counted, _ = get_model_complexity_info(
        copy.deepcopy(model).eval(),
        (3, 32, 32),
        as_strings=False,
        print_per_layer_stat=False,
        backend="aten",
        verbose=False,
    )
    theirs = int(counted) - sum(math.prod(op.output_shape) for op in ops if op.bias)
    if theirs != macs(ops):
        raise ScoreError(f"MACs: ptflops counts {theirs:,}, micronet.scoring {macs(ops):,}; one of them is wrong")
    return theirs


def _millions(count: float) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,.0f}"


def _number(count: float) -> str:
    return f"{count:,.0f}" if count else ""


def score_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """The stages of the path as a table. `rows`: the columns of `metrics/path.csv`, None where not measured."""
    from rich import box
    from rich.table import Table

    title = "Test accuracy and MicroNet score (lower is better; the deck's group reached 0.0357)"
    table = Table(title=title, box=box.SIMPLE_HEAD)  # fits 80 columns
    table.add_column("stage")
    columns = ("accuracy", "parameters", "non-zero", "MACs", "deck", "challenge")
    for column in columns:
        table.add_column(column, justify="right")
    forms = {
        "test_accuracy_percent": lambda value: f"{value:.2f} %",
        "parameters": lambda value: f"{value:,}",
        "nonzero_parameters": lambda value: f"{value:,}",
        "macs": _millions,
        "deck_score": lambda value: f"{value:.4f}",
        "challenge_score": lambda value: f"{value:.4f}",
    }
    for row in rows:
        cells = ("-" if row.get(key) is None else form(row[key]) for key, form in forms.items())
        table.add_row(str(row["stage"]), *cells)
    return table


def layer_table(ops: Sequence[Operation], title: str, passes: Sequence[float] = ONCE) -> Table:
    """Every operation as a row: shape, widths, counts of one pass, storage, its share of either score."""
    from rich import box
    from rich.table import Table

    deck, challenge = deck_score(ops, passes), challenge_score(ops, passes)
    reference_ops, reference_params = _challenge_reference(ops)
    deck_bits = sum(_deck_bits(op) for op in ops)
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("operation", no_wrap=True)
    table.add_column("output", no_wrap=True)
    columns = ("bits w/a/acc", "non-zero", "of", "MACs", "mult.", "add.", "storage bits", "deck %", "challenge %")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for op in ops:
        deck_share = passes[op.network] * deck_flops(op) / REFERENCE_OPERATIONS
        deck_share += deck.score_params * _deck_bits(op) / deck_bits if deck_bits else 0.0
        stored = 0 if op.rules == "deck" else op.storage_bits
        challenge_share = passes[op.network] * challenge_ops(op) / reference_ops + stored / 32 / reference_params
        done = op if op.rules != "deck" else replace(op, multiplications=(), additions=())
        table.add_row(
            op.name,
            "x".join(map(str, op.output_shape)),
            f"{op.weight_bits}/{op.activation_bits}/{op.accumulator_bits}" if op.weights else "",
            _number(op.nonzeros),
            _number(op.weights),
            _number(macs([op])),
            _number(sum(count for _, count in done.multiplications)),
            _number(sum(count for _, count in done.additions)),
            _number(stored),
            f"{100 * deck_share / deck.score:.2f}" if deck_share else "",
            f"{100 * challenge_share / challenge.score:.2f}" if challenge_share else "",
        )
    return table


def main(argv: list[str] | None = None) -> int:
    """`python -m micronet.scoring NAME`: the price of an architecture, before anybody trains it."""
    parser = argparse.ArgumentParser(prog="python -m micronet.scoring", description=main.__doc__)
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(models.NAMED)}")
    parser.add_argument("--spec", help='an architecture as JSON, e.g. \'{"name": "densenet_nano", "classes": 10}\'')
    parser.add_argument("--weight-bits", type=int, default=16, metavar="N", help="1 to 8, 16 or 32 (default 16)")
    parser.add_argument("--activation-bits", type=int, metavar="N", help="default: unquantized")
    parser.add_argument("--accumulator-bits", type=int, default=32, metavar="N", help="default 32")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    try:
        if (arguments.name is None) == (arguments.spec is None):
            raise ScoreError(f"give a name or --spec (names: {', '.join(models.NAMED)})")
        spec = arguments.name if arguments.spec is None else json.loads(arguments.spec)
        # The architecture's price, so no values: a random weight of a large network can happen to be 0.
        with torch.device("meta"):
            model = models.build(spec)
        ops = operations(
            model,
            weight_bits=arguments.weight_bits,
            activation_bits=arguments.activation_bits,
            accumulator_bits=arguments.accumulator_bits,
        )
    except json.JSONDecodeError as error:
        print(f"--spec: not JSON: {error}", file=sys.stderr)
        return 2
    except (ScoreError, models.SpecError) as error:
        print(error, file=sys.stderr)
        return 2
    deck, challenge = deck_score(ops), challenge_score(ops)
    if arguments.json:
        print(json.dumps({"deck": asdict(deck), "challenge": asdict(challenge), "macs": macs(ops)}, indent=2))
        return 0
    from rich.console import Console

    # A narrow terminal wraps the lines; cutting columns off would hide numbers.
    console = Console(width=max(Console().width, 180))
    console.print(layer_table(ops, arguments.name or str(spec["name"])))
    console.print(
        f"MACs {macs(ops):,}\n"
        f"deck: flops {deck.flops:,} ({deck.score_flops:.4f}), params {deck.params:,} ({deck.score_params:.4f}), "
        f"score {deck.score:.4f}\n"
        f"challenge: operations {challenge.ops:,.0f} ({challenge.score_ops:.4f}), params {challenge.params:,.0f} "
        f"({challenge.score_params:.4f}), score {challenge.score:.4f}",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
