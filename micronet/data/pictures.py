"""Reads picture files of many formats, with Pillow, into pixels of one size; errors are a reason of one line.

The result does not depend on the machine, only on the version of Pillow:

- the first frame or page, turned as its EXIF orientation says;
- 16-bit values by their upper byte, 12-bit ones by their upper eight bits, floats in 0..1 as shares of white; colour
  profiles are not applied; signed values define neither black nor white and are refused;
- transparent pixels are put on white, as on a page;
- grey by ITU-R 601 luma, if one channel is asked for;
- resampled with a triangle filter as wide as a pixel of the result, as torchvision does for training images: no pixel
  is skipped, and edges get no halo, unlike with a Lanczos filter, which clips there.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from micronet.errors import MicronetError, shown
from micronet.files import NotRegular, TooLarge, regular_bytes

TIFF = TiffImagePlugin.TiffImageFile.format
PNG = PngImagePlugin.PngImageFile.format
FORMATS = (  # Pillow knows more formats, some of which start other programs
    PNG,
    JpegImagePlugin.JpegImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
    BmpImagePlugin.BmpImageFile.format,
    GifImagePlugin.GifImageFile.format,
    TIFF,
)
SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff")
)  # in lower case
MOST_PIXELS = 100_000_000  # 12 times a large photo; less than a gigabyte while decoding
MOST_BYTES = 1 << 28
GAP = 3.0  # a picture may be reduced by whole factors before resampling, to this many times its size: not visible
WHITE = (255, 255, 255, 255)
TURNS = {  # by EXIF orientation: how to turn the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Fit = Literal["stretch", "crop", "pad"]  # how a picture of another shape is fitted to the wanted one
Box = tuple[float, float, float, float]  # left, top, right, bottom
ORIENTATION = 0x0112  # a tag of EXIF
BITS, PHOTOMETRIC, PALETTE, SAMPLE_FORMAT, SUBSAMPLING = 258, 262, 320, 339, 530  # tags of TIFF 6.0
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WHITE_IS_ZERO, SIGNED = 0, 2
KEY_SCALES = {"L;2": 85, "L;4": 17}  # by how a PNG packs its grey: Pillow scales the pixels by this, but not the key
# Pillow's name for 16-bit colours, of which it keeps the upper bytes; in the other order it keeps the lower ones.
UPPER, LOWER = "RGB;16B", "RGB;16L"


class Unreadable(MicronetError):
    """A file is not a readable picture; the message says why, in a few words."""


class Format(Protocol):
    """The format that pictures are converted to; see `params.ImageFormat`."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def channels(self) -> Literal[1, 3]: ...
    @property
    def fit(self) -> Fit: ...


class PlainFormat(NamedTuple):
    """A format without params."""

    height: int
    width: int
    channels: Literal[1, 3]
    fit: Fit


def read(file: Path | str | bytes, image: Format) -> np.ndarray:
    """A picture as pixels, (C, H, W) uint8.

    Args:
        file: a path, or the content of a file.
        image: `fit` says how a picture of another shape is fitted: `stretch` changes its proportions, `crop` keeps the
            largest central part with the right proportions, `pad` keeps all of it and adds black on two sides.

    Raises:
        Unreadable: it is not a picture, is damaged, or is larger than `MOST_PIXELS` or `MOST_BYTES`.
    """
    content = file if isinstance(file, bytes) else _content(file)
    if not content:
        raise Unreadable("is empty")
    try:
        with _quiet(), Image.open(io.BytesIO(content), formats=FORMATS) as opened:  # reads only the header
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise Unreadable(f"has {width} x {height} pixels, {MOST_PIXELS:,} are the most")
            if opened.format == TIFF:
                _check_tiff(opened)
            reduced = _skip_detail(opened, image)
            packing = opened.tile[0].args if opened.format == PNG and opened.tile else None  # lost after loading
            with _mute() if opened.format == TIFF else nullcontext():
                opened.load()
            turned = _turned(_keyed(opened, packing, content))
            return _fitted(_plain(turned, image.channels), image, reduced)
    except (Unreadable, MemoryError):
        raise
    except UnidentifiedImageError:
        if content.startswith(TIFF_STARTS):
            raise Unreadable("is a TIFF that is damaged, or of a kind that is not read; as PNG it would be") from None
        raise Unreadable("is no picture in PNG, JPEG, WebP, BMP, GIF or TIFF") from None
    except Image.DecompressionBombError:
        raise Unreadable(f"has too many pixels, {MOST_PIXELS:,} are the most") from None
    except Exception as error:  # a damaged picture can make Pillow raise anything
        raise Unreadable(f"is damaged ({shown(error, 80) or type(error).__name__})") from None


def _content(path: Path | str) -> bytes:
    """The bytes of a file. Raises `Unreadable` if it is missing, too large, a pipe or a device."""
    try:
        return regular_bytes(path, MOST_BYTES)
    except (NotRegular, TooLarge) as error:
        raise Unreadable(error.strerror) from None
    except (OSError, ValueError) as error:  # a zero byte in a name
        raise Unreadable(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Pillow's warnings and logs off the terminal: a file must not be able to write there."""
    logger = logging.getLogger("PIL")
    before = logger.propagate
    nobody = logging.NullHandler()
    logger.addHandler(nobody)
    logger.propagate = False
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.propagate = before
        logger.removeHandler(nobody)


@contextmanager
def _mute() -> Iterator[None]:
    """Keeps libtiff's messages off the terminal: it writes to the process's stderr, bypassing Python."""
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed: there is nowhere to write
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _skip_detail(opened: Image.Image, image: Format) -> float:
    """Lets a JPEG decode at half, a quarter or an eighth of its size if that is still `GAP` times the result.

    Returns:
        How many times smaller the picture is now.
    """
    width, height = opened.size
    side = max(image.width, image.height)  # it may still be turned
    reduction = int(min(width, height) / (side * GAP))
    if reduction > 1:
        opened.draft(None, (width // reduction, height // reduction))  # does nothing for other formats
    return width / opened.size[0]


def _turned(opened: Image.Image) -> Image.Image:
    """The picture in its intended orientation. Damaged EXIF data are ignored."""
    try:
        turn = TURNS.get(opened.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF can make Pillow raise anything; the pixels are intact
        turn = None
    return opened if turn is None else opened.transpose(turn)


def _check_tiff(opened: Image.Image) -> None:
    """Raises `Unreadable` for a TIFF whose values Pillow would misinterpret."""
    tags = _tags(opened)
    if SIGNED in tags.get(SAMPLE_FORMAT, ()) and max(tags.get(BITS, (1,))) <= 16:
        raise Unreadable("holds numbers with a sign; without one, in 8 or 16 bits, it can be read")
    if opened.mode == "YCbCr" and tuple(tags.get(SUBSAMPLING, (1, 1))) != (1, 1):
        raise Unreadable("holds subsampled colours without compression; in RGB it can be read")
    if opened.mode in ("P", "PA") and 0 < max(tags.get(PALETTE, (0,))) <= 0xFF:
        raise Unreadable("has a palette of 8 bits where a TIFF's are of 16; in RGB it can be read")


def _tags(opened: Image.Image) -> Mapping[int, Any]:
    """The tags of a TIFF; none for other formats."""
    return getattr(opened, "tag_v2", {})


def _keyed(opened: Image.Image, packing: object, content: bytes) -> Image.Image:
    """The picture, with the transparent colour of a PNG scaled as its pixels are.

    Args:
        packing: Pillow's name for how the file packs its pixels.
    """
    key = opened.info.get("transparency")
    if isinstance(key, int) and packing in KEY_SCALES:
        scale = KEY_SCALES[str(packing)]
        opened.info["transparency"] = key * scale & 0xFF  # bits above the depth are ignored
    elif isinstance(key, tuple) and packing == UPPER:
        return _keyed_16_bits(opened, key, content)
    return opened


def _keyed_16_bits(opened: Image.Image, key: tuple[int, ...], content: bytes) -> Image.Image:
    """The picture as RGBA, transparent where both bytes of every colour match the key."""
    with Image.open(io.BytesIO(content), formats=[PNG]) as lower:
        lower.tile = [tile._replace(args=LOWER) for tile in lower.tile]
        lower.load()
        lower.info["transparency"] = tuple(value & 0xFF for value in key)
        alpha = lower.convert("RGBA").getchannel("A")
    opened.info["transparency"] = tuple(value >> 8 for value in key)
    picture = opened.convert("RGBA")
    picture.putalpha(ImageChops.lighter(picture.getchannel("A"), alpha))
    return picture


def _plain(picture: Image.Image, channels: int) -> Image.Image:
    """The picture in 8 bits, grey or RGB, without transparency."""
    mode = "L" if channels == 1 else "RGB"
    if picture.mode == "La":  # premultiplied: Pillow converts it to nothing else
        picture = picture.convert("LA")
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = Image.fromarray(_eight_bits(picture))
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), picture)
    elif picture.mode in ("P", "LAB"):
        picture = picture.convert("RGB")
    try:
        return picture if picture.mode == mode else picture.convert(mode)
    except ValueError:
        raise Unreadable(f"has colours in {picture.mode}, which are not read; in RGB they would be") from None


def _eight_bits(picture: Image.Image) -> np.ndarray:
    """Grey of 16 or more bits per pixel as (H, W) uint8; Pillow's own conversion would clip it. Raises `Unreadable`."""
    values, tags = np.asarray(picture), _tags(picture)
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    if picture.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0.0 and values.max() <= 1.0):
            raise Unreadable("holds floats outside of 0 to 1; in 8 or 16 bits it can be read")
        return np.rint((1.0 - values if inverted else values) * 255.0).astype(np.uint8)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise Unreadable("holds whole numbers outside of 0 to 65,535; in 8 or 16 bits it can be read")
    # The upper byte, as Pillow does for 16-bit colours.
    grey = (values >> (4 if tags.get(BITS) == (12,) else 8)).astype(np.uint8)
    if inverted:
        grey = 255 - grey
    key = picture.info.get("transparency")
    if isinstance(key, int):
        grey = np.where(values == key, np.uint8(255), grey)
    return grey


def _fitted(picture: Image.Image, image: Format, reduced: float) -> np.ndarray:
    """The picture in the wanted size, (C, H, W) uint8."""
    size = image.width, image.height
    if image.fit == "pad":
        scale = min(size[0] / picture.width, size[1] / picture.height)
        inside = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        small = _resized(picture, inside, (0, 0, *picture.size))
        picture = Image.new(picture.mode, size)
        picture.paste(small, ((size[0] - inside[0]) // 2, (size[1] - inside[1]) // 2))
    else:
        box: Box = (0, 0, *picture.size) if image.fit == "stretch" else _middle(picture.size, size, reduced)
        picture = _resized(picture, size, box)
    pixels = np.asarray(picture).reshape(image.height, image.width, -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _middle(size: tuple[int, int], wanted: tuple[int, int], reduced: float) -> Box:
    """The largest central box of a picture with the wanted proportions.

    Its edges lie on whole pixels of the picture before it was reduced by `reduced`, so that no pixel is blurred.
    """
    whole = [round(side * reduced) for side in size]
    scale = min(whole[0] / wanted[0], whole[1] / wanted[1])
    width, height = (max(1, min(side, round(scale * goal))) for side, goal in zip(whole, wanted, strict=True))
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    right, bottom = min((left + width) / reduced, size[0]), min((top + height) / reduced, size[1])
    return left / reduced, top / reduced, right, bottom


def _resized(picture: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    return picture.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=GAP)
