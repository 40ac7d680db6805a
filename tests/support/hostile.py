"""Packed files that lie: altered, and signed again so that only their content gives them away."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from typing import Any

from micronet.packed.file import _digest


def resigned(data: bytes, change: Callable[[dict[str, Any], dict[str, Any], bytearray], None]) -> bytes:
    """A file whose header, table or payload `change(header, table, payload)` altered, with a digest that fits."""
    length = int.from_bytes(data[:8], "little")
    top = json.loads(data[8 : 8 + length])
    header = json.loads(top["__metadata__"]["micronet"])
    table = json.loads(zlib.decompress(base64.b85decode(header["table"])))
    payload = bytearray(data[8 + length :])
    change(header, table, payload)
    header["table"] = base64.b85encode(zlib.compress(json.dumps(table).encode())).decode()
    header["digest"] = _digest(header, bytes(payload))
    top["__metadata__"]["micronet"] = json.dumps(header)
    top["payload"] = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    text = json.dumps(top).encode()
    return len(text).to_bytes(8, "little") + text + bytes(payload)
