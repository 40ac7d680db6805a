"""Pictures in memory and folders of them, as users have them on disk."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from micronet import params


def image_format(height: int = 8, width: int = 8, **changes: Any) -> params.ImageFormat:
    """The format that pictures are converted to; small unless a test says otherwise."""
    return params.ImageFormat(height=height, width=width, **changes)


def encoded(picture: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """A picture, or its pixels as (H, W) or (H, W, 3), as file content."""
    content = io.BytesIO()
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(content, form, **options)
    return content.getvalue()


def png_file(width: int, height: int, pixels: bytes, *, depth: int = 8, colour: int = 0, key: bytes = b"") -> bytes:
    """A PNG with this header, which no library would write.

    Args:
        pixels: the rows, packed. depth: bits per sample. colour: 0 grey, 2 RGB. key: the transparent colour.
    """
    row = len(pixels) // height
    lines = b"".join(b"\0" + pixels[at : at + row] for at in range(0, len(pixels), row or 1))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        *([(b"tRNS", key)] if key else []),
        (b"IDAT", zlib.compress(lines) if lines else b""),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


def retagged(tiff: bytes, tags: dict[int, int]) -> bytes:
    """A little-endian TIFF with the values of some existing tags changed."""
    changed = bytearray(tiff)
    (at,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", tiff, entry)
        if tag in tags:
            struct.pack_into("<I", changed, entry + 8, tags[tag])
    return bytes(changed)


def noise(height: int = 8, width: int = 8, seed: int = 0, channels: int = 3) -> np.ndarray:
    """(H, W, C) uint8, or (H, W) for one channel; every pixel drawn from all values."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_picture(path: Path, picture: np.ndarray, **options: Any) -> Path:
    """Writes a picture in the format of its file extension, creating parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **options)
    return path


def picture_folder(root: Path, *, train: int = 4, test: int = 2, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """`root/{train,test}/CLASS/NUMBER.png`, 10 x 8 pixels of noise, all different."""
    seed = 0
    for part, count in (("train", train), ("test", test)):
        for name in classes:
            for number in range(count):
                write_picture(root / part / name / f"{number}.png", noise(10, 8, seed))
                seed += 1
    return root
