"""The operations of the packed model, one frozen class each, in a file of its own.

Each file says what the operation stores and how it is written, read and checked. `packed.module` runs it in torch,
`packed.reference` in numpy, and `scoring.packed_counts` prices it; they dispatch on the classes, and so do the
exports.
"""

from __future__ import annotations

from micronet.packed.steps.affine import Affine
from micronet.packed.steps.base import Step
from micronet.packed.steps.concat import Concat
from micronet.packed.steps.conv import Conv
from micronet.packed.steps.image import Input
from micronet.packed.steps.linear import Linear
from micronet.packed.steps.pool import Maximum, Pool
from micronet.packed.steps.product import Product
from micronet.packed.steps.table import Applied, Table

OPERATIONS: dict[str, type[Step]] = {
    kind.op: kind for kind in (Input, Conv, Affine, Pool, Maximum, Concat, Product, Table, Applied, Linear)
}
"""The classes by their names in a file's table."""
