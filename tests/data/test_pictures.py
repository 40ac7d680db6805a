"""Pictures of every format, depth and mode become the same pixels; what is none is refused in a line."""

from __future__ import annotations

import io
import itertools
import os
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms

from micronet.data.pictures import MOST_BYTES, MOST_PIXELS, Unreadable, read
from tests.support.pictures import encoded, image_format, noise, png_file, retagged
from tests.support.thinning import thinned


def flat(colour: tuple[int, ...], mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, colour)


@pytest.mark.parametrize(
    ("form", "options", "near"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 100, "subsampling": 0}, 6),
    ],
)
def test_every_format_gives_the_pixels_that_were_written(form, options, near):
    pixels = np.kron(noise(4, 4), np.ones((2, 2, 1), np.uint8))  # in squares, which a lossy format keeps too
    got = read(encoded(pixels, form, **options), image_format())
    assert got.shape == (3, 8, 8) and got.dtype == np.uint8 and got.flags.c_contiguous
    assert np.abs(got.astype(int) - pixels.transpose(2, 0, 1)).max() <= near


def test_a_gif_gives_its_first_frame():
    frames = [flat((value, 0, 0)) for value in (200, 100)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (read(content, image_format())[0] == 200).all()


def test_a_jpeg_of_a_camera_with_a_second_picture_inside_is_read():
    content = encoded(flat((200, 10, 10)), "MPO", save_all=True, append_images=[flat((0, 0, 0))])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    assert read(content, image_format())[0].min() > 190


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_of_16_bits_keeps_its_upper_byte_instead_of_being_clipped(form, order, channels):
    values = np.random.default_rng(0).integers(0, 1 << 16, (8, 8)).astype(order)
    got = read(encoded(values, form), image_format(channels=channels))
    assert (got == values.astype(int) >> 8).all()


def test_grey_of_16_bits_may_count_from_white_and_have_a_transparent_value():
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    inverted = encoded(values, "TIFF", tiffinfo={262: 0})
    assert (read(inverted, image_format(channels=1))[0] == 255 - (values >> 8)).all()
    keyed = encoded(values, "PNG", transparency=5000)
    expected = np.where(values == 5000, 255, values >> 8)
    assert (read(keyed, image_format(channels=1))[0] == expected).all()


def test_whole_numbers_and_floats_are_read_where_their_range_is_known():
    values = np.arange(64, dtype=np.int32).reshape(8, 8) * 1000
    assert (read(encoded(values, "TIFF"), image_format(channels=1))[0] == values >> 8).all()
    shares = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert (read(encoded(shares, "TIFF"), image_format(channels=1))[0] == np.rint(shares * 255)).all()
    for fault in (values + (1 << 16), values - 1, shares * 255, shares * np.nan, -shares):
        with pytest.raises(Unreadable, match="in 8 or 16 bits it can be read"):
            read(encoded(fault, "TIFF"), image_format())


def test_a_float_tiff_may_count_from_white():
    shares = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for compression in (None, "tiff_lzw"):
        content = encoded(shares, "TIFF", tiffinfo={262: 0}, compression=compression)
        assert (read(content, image_format(channels=1))[0] == np.rint((1 - shares) * 255)).all()


def test_grey_of_12_bits_keeps_its_upper_eight():
    values = np.arange(64) * 65
    packed = bytes(
        byte
        for first, second in values.reshape(-1, 2).tolist()
        for byte in (first >> 4, (first & 15) << 4 | second >> 8, second & 255)
    )
    bytes_as_grey = encoded(np.frombuffer(packed, np.uint8).reshape(8, 12), "TIFF")
    got = read(retagged(bytes_as_grey, {256: 8, 258: 12}), image_format(channels=1))
    assert (got[0].reshape(-1) == values >> 4).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_a_png_is_on_the_scale_of_its_depth(depth):
    most = 2**depth - 1
    values = np.arange(64) * 257 % (most + 1)
    key = int(values[9])
    bits = (values[:, None] >> np.arange(depth)[::-1] & 1).astype(np.uint8)
    content = png_file(8, 8, np.packbits(bits).tobytes(), depth=depth, key=key.to_bytes(2, "big"))
    shown = values >> 8 if depth == 16 else values * (255 // most)
    got = read(content, image_format(channels=1))[0].reshape(-1)
    assert (got == np.where(values == key, 255, shown)).all() and len(set(values == key)) == 2


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_16_bits_is_compared_by_both_of_its_bytes(channels):
    key, other = np.array([0x1234, 0x5678, 0x9ABC]), np.array([0x3412, 0x7856, 0xBC9A])
    values = np.tile(other, (64, 1))
    values[9] = key
    values[10:13] = key + np.eye(3, dtype=int)  # the upper bytes are those of the key, then the lower ones
    values[13:16] = key + 0x100 * np.eye(3, dtype=int)
    got = read(
        png_file(8, 8, values.astype(">u2").tobytes(), depth=16, colour=2, key=key.astype(">u2").tobytes()),
        image_format(channels=channels),
    ).reshape(channels, -1)
    white = (got == 255).all(0)
    assert white[9] and white.sum() == 1
    if channels == 3:
        assert (got[:, ~white].T == (values >> 8)[~white]).all()


def test_premultiplied_grey_lies_on_white():
    grey = np.stack([np.full((8, 8), 100, np.uint8), np.full((8, 8), 128, np.uint8)], 2)
    content = retagged(encoded(Image.fromarray(grey, "LA"), "TIFF"), {338: 1})
    assert Image.open(io.BytesIO(content)).mode == "La"
    assert (read(content, image_format(channels=1)) == 227).all() and (read(content, image_format()) == 227).all()


def test_lab_is_read_in_colour_and_in_grey():
    to_lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    content = encoded(ImageCms.profileToProfile(flat((90, 140, 60)), *to_lab, outputMode="LAB"), "TIFF")
    assert np.abs(read(content, image_format())[:, 0, 0].astype(int) - (90, 140, 60)).max() <= 2
    assert abs(int(read(content, image_format(channels=1))[0, 0, 0]) - 116) <= 2


def with_a_palette_of_8_bits() -> bytes:
    content = encoded(flat((10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE), "TIFF")
    colours = np.array(Image.open(io.BytesIO(content)).tag_v2[320], "<u2")
    return content.replace(colours.tobytes(), (colours >> 8).tobytes())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded(np.ones((8, 8), np.uint8), "TIFF", tiffinfo={339: 2}), "holds numbers with a sign; without one, in 8"),
        (encoded(np.ones((8, 8), np.uint16), "TIFF", tiffinfo={339: 2}), "holds numbers with a sign; without one"),
        (encoded(flat((9, 9, 9), "YCbCr"), "TIFF", tiffinfo={530: (2, 2)}), "holds subsampled colours without compre"),
        (with_a_palette_of_8_bits(), "has a palette of 8 bits where a TIFF's are of 16; in RGB it can be read"),
        (encoded(noise(), "TIFF", tiffinfo={339: (2, 2, 2)}), "is a TIFF that is damaged, or of a kind that is not re"),
    ],
)  # fmt: skip
def test_a_tiff_that_would_be_taken_for_another_picture_is_refused(content, reason):
    with pytest.raises(Unreadable) as caught:
        read(content, image_format())
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_a_bright_picture_is_bright_in_grey_and_in_colour(mode, channels):
    picture = flat((255, 255, 255)).convert("RGBA").convert(mode)
    got = read(encoded(picture, "TIFF"), image_format(channels=channels))
    assert got.shape == (channels, 8, 8) and got.min() >= 250


def test_cmyk_of_a_jpeg_is_not_inverted():
    got = read(encoded(flat((255, 0, 0)).convert("CMYK"), "JPEG", quality=100), image_format())
    assert got[0].min() > 245 and got[1:].max() < 10


def test_grey_is_made_of_colours_by_their_luma():
    got = read(encoded(flat((0, 255, 0))), image_format(channels=1))
    assert (got == 150).all() and got.shape == (1, 8, 8)


def test_what_is_transparent_lies_on_white():
    half = np.full((8, 8, 4), (200, 0, 0, 128), np.uint8)
    half[:4, :, 3] = 0
    got = read(encoded(Image.fromarray(half)), image_format())
    assert (got[:, :4] == 255).all() and (got[0, 4:] == 227).all() and (got[1, 4:] == 127).all()
    grey = np.stack([np.zeros((8, 8), np.uint8), np.full((8, 8), 0, np.uint8)], 2)
    assert (read(encoded(Image.fromarray(grey, "LA")), image_format(channels=1)) == 255).all()


def test_a_palette_and_plain_colours_may_have_a_transparent_entry():
    palette = flat((10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    index = palette.getpixel((0, 0))
    assert (read(encoded(palette), image_format())[:, 0, 0] == (10, 20, 30)).all()
    assert (read(encoded(palette, transparency=index), image_format()) == 255).all()
    assert (read(encoded(palette, "GIF", transparency=0), image_format()) == 255).all()
    assert (read(encoded(flat((10, 20, 30)), transparency=(10, 20, 30)), image_format()) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_its_exif_says(orientation, form):
    upright = np.kron(np.array([[0, 255, 90], [160, 40, 220]], np.uint8), np.ones((8, 8), np.uint8))  # 16 x 24
    turns = {  # what a camera that writes this orientation has stored
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].T,
        8: lambda x: np.rot90(x, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100}}[form]
    got = read(encoded(stored.convert("RGB"), form, exif=exif, **options), image_format(16, 24))
    assert np.abs(got[0].astype(int) - upright).max() <= 3


def test_a_damaged_exif_costs_no_picture():
    content = encoded(flat((9, 9, 9)), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff" + bytes(9))
    assert read(content, image_format()).max() < 20


def test_crop_keeps_the_largest_middle_part_of_the_wanted_proportions():
    pixels = noise(8, 12)
    got = read(encoded(pixels), image_format(8, 8))
    assert (got == pixels[:, 2:10].transpose(2, 0, 1)).all()
    got = read(encoded(pixels.transpose(1, 0, 2).copy()), image_format(8, 8))
    assert (got == pixels.transpose(1, 0, 2)[2:10].transpose(2, 0, 1)).all()


def test_pad_keeps_the_whole_picture_and_adds_black():
    pixels = noise(8, 16) | 1
    got = read(encoded(pixels), image_format(16, 16, fit="pad"))
    assert (got[:, 4:12] == pixels.transpose(2, 0, 1)).all()
    assert (got[:, :4] == 0).all() and (got[:, 12:] == 0).all()
    got = read(encoded(pixels), image_format(8, 32, fit="pad"))
    assert (got[:, :, 8:24] == pixels.transpose(2, 0, 1)).all() and (got[:, :, :8] == 0).all()


def test_stretch_shows_all_of_a_picture_in_other_proportions():
    halves = np.zeros((8, 64, 3), np.uint8)
    halves[:, 32:] = 255
    got = read(encoded(halves), image_format(8, 8, fit="stretch"))
    assert (got[:, :, :3] == 0).all() and (got[:, :, 5:] == 255).all()


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 9), (1000, 13)])
def test_any_size_becomes_the_wanted_one(fit, size):
    got = read(encoded(flat((255, 255, 255), size=size)), image_format(9, 31, fit=fit))
    assert got.shape == (3, 9, 31) and got.max() == 255
    assert fit == "pad" or got.min() == 255


def test_no_pixel_is_skipped_when_a_picture_is_made_smaller_and_no_edge_gets_a_halo():
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(read(encoded(checks), image_format(channels=1)).astype(int) - 127).max() <= 1
    edge = np.where(np.arange(256) < 100, 100, 200).astype(np.uint8)[None].repeat(256, 0)
    got = read(encoded(edge), image_format(channels=1))
    assert got.min() == 100 and got.max() == 200


@pytest.mark.parametrize(("fit", "orientation"), thinned(itertools.product(["crop", "pad", "stretch"], [1, 6]), 5))
def test_a_large_jpeg_is_decoded_in_part_and_looks_the_same(fit, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(noise(15, 20)).resize((1000, 750))  # 1000 / 8 - 750 / 8 is odd
    forms = (("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}))
    wanted = image_format(16, 16, fit=fit)
    jpeg, png = (read(encoded(picture, form, exif=exif, **options), wanted).astype(int) for form, options in forms)
    assert np.abs(jpeg - png).mean() < 2 and np.abs(jpeg - png).max() < 12


def test_a_picture_of_too_many_pixels_is_refused_by_its_header():
    with pytest.raises(Unreadable, match=f"^has too many pixels, {MOST_PIXELS:,} are the most$"):
        read(png_file(20_000, 20_000, b""), image_format())
    with pytest.raises(Unreadable, match=f"^has 10000 x 10001 pixels, {MOST_PIXELS:,} are the most$"):
        read(png_file(10_000, 10_001, b""), image_format())
    with pytest.raises(Unreadable, match="^is damaged"):
        read(png_file(10, 10, b""), image_format())


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_truncated_file_is_refused_wherever_it_ends(form):
    content = encoded(noise(64, 64), form)
    for end in (1, 2, 10, 40, len(content) // 3, len(content) // 2, len(content) * 3 // 4):
        with pytest.raises(Unreadable) as caught:
            read(content[:end], image_format())
        assert len(str(caught.value)) < 200 and str(caught.value).isprintable()


def test_a_damaged_tiff_says_nothing_on_the_terminal(capfd):
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        content = bytearray(encoded(noise(64, 64), "TIFF", compression=compression))
        content[100:3000] = b"\xff" * 2900
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                read(bytes(content), image_format())
            except Unreadable:
                pass
        assert not caught
    os.write(2, b"heard")
    assert capfd.readouterr() == ("", "heard")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("hello"), "is no picture in PNG, JPEG, WebP, BMP, GIF or TIFF"),
        (lambda path: path.mkdir(), "cannot be read (Is a directory)"),
        (lambda path: None, "cannot be read (No such file or directory)"),
        (lambda path: os.mkfifo(path), "is no regular file"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), MOST_BYTES + 1), "is larger than"),
        (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "is no picture"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(make, reason, tmp_path):
    make(tmp_path / "a.png")
    with pytest.raises(Unreadable) as caught:
        read(tmp_path / "a.png", image_format())
    assert str(caught.value).startswith(reason)
    with pytest.raises(Unreadable, match="is empty"):
        read(b"", image_format())
    with pytest.raises(Unreadable, match="null byte"):
        read("a\0.png", image_format())


def test_a_file_is_read_whatever_its_suffix_says(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(flat((1, 2, 3)), "BMP"))
    assert (read(tmp_path / "a.png", image_format())[:, 0, 0] == (1, 2, 3)).all()
