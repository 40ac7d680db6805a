"""The page in Chromium: from the disk, with the network off, by mouse, keyboard, drop and paste."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from micronet.data.pictures import read as read_picture
from micronet.export.targets import Options
from micronet.export.web import PAGE, RUNNER, export, module
from micronet.packed.file import decode
from micronet.packed.reference import predict
from tests.support.chromium import chromium, page_of
from tests.support.colours import colours, contrast
from tests.support.exports import INTEGERS, RELEASED, digest, released, sample, seen_by
from tests.support.hostile import resigned
from tests.support.packed import general_file
from tests.support.pictures import encoded, image_format, noise

MARKUP = "<img src=x onerror=\"document.title='taken'\">"
GIVE = """([kind, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "picture.png", { type: "image/png" }));
  const options = { bubbles: true, cancelable: true };
  const event = kind === "drop"
    ? new DragEvent("drop", { ...options, dataTransfer: transfer })
    : new ClipboardEvent("paste", { ...options, clipboardData: transfer });
  document.body.dispatchEvent(event);
}"""
TOOLS = "globalThis.tools = { load, pixelsOf };"
DECODED = """async ([content, image, fit]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  return Array.from(await tools.pixelsOf(new Blob([bytes], { type: "image/png" }), image, fit));
}"""
CLASSIFIED = """async ([content, pixels]) => {
  const [bytes, all] = [content, pixels].map((text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
  const model = await tools.load(bytes);
  const size = model.image[0] * model.image[1] * model.image[2];
  const found = [];
  for (let at = 0; at < all.length; at += size) found.push(model.classify(all.subarray(at, at + size)).logits);
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def published(data: bytes, folder: Path) -> Path:
    """The page of a packed file."""
    for name, content in export(decode(data), data, Options()).files.items():
        (folder / name).write_bytes(content)
    return folder / "index.html"


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def rows(page: Page) -> list[list[str]]:
    """(class, what stands beside its bar) from the best on."""
    found = page.locator(".bars li")
    found.first.wait_for()
    return [[item.locator(".name").inner_text(), item.locator(".share").inner_text()] for item in found.all()]


def expected(data: bytes, picture: bytes, fit: str = "crop") -> list[list[str]]:
    """The rows of a file without a scale."""
    model = decode(data)
    channels, height, width = model.image
    pixels = read_picture(picture, image_format(height, width, channels=channels, fit=fit))
    (logits,) = predict(model, pixels[None])
    return [[model.class_names[label], str(logits[label])] for label in np.argsort(-logits, kind="stable")[:10]]


def test_a_picture_chosen_by_key_dropped_or_pasted_shows_ten_bars_from_the_disk_without_a_network(browser, tmp_path):
    data = released("dense")
    pictures = [encoded(noise(32, 45, seed)) for seed in range(3)]  # whose middle is 32 x 32
    with page_of(browser, published(data, tmp_path), viewport={"width": 390, "height": 800}) as page:
        # The first who listens turns the browser's own dialog off, by a message that the key below could overtake.
        page.on("filechooser", lambda _: None)
        page.get_by_text("Ready.").wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "picture"
        assert page.get_by_label("Choose a picture").get_attribute("id") == "picture"
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", "where the focus is cannot be seen"
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Space")
        chooser.value.set_files({"name": "picture.png", "mimeType": "image/png", "buffer": pictures[0]})
        assert rows(page) == expected(data, pictures[0]) and len(rows(page)) == 10
        for kind, picture in zip(("drop", "paste"), pictures[1:], strict=True):
            page.evaluate(GIVE, [kind, text(picture)])
            best = expected(data, picture)
            page.locator(".bars li .share").first.get_by_text(best[0][1], exact=True).wait_for()
            assert rows(page) == best
        said = page.get_by_role("status")
        assert re.fullmatch(rf"{best[0][0]}: [\d.]+ ms(, 2 passes)?\.", said.inner_text())
        assert said.get_attribute("aria-live") == "polite"
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
        page.evaluate(GIVE, ["drop", text(b"no picture")])
        page.get_by_text("That is no picture that this browser can read.").wait_for()
        assert not page.locator(".answer").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_in_light_and_dark(scheme):
    found = colours((PAGE / "style.css").read_text(encoding="utf-8"), scheme)
    # WCAG 2.2, AA: 4.5 of text, 3 of what else has to be seen
    assert all(contrast(found[ink], found[on]) >= 4.5 for ink in ("text", "quiet") for on in ("paper", "raised"))
    assert all(contrast(found[ink], found[on]) >= 3 for ink in ("edge", "bar", "focus") for on in ("paper", "raised"))


def test_what_a_file_says_is_never_markup(browser, tmp_path):
    def change(header, table, payload):
        table["classes"] = [MARKUP, "</script><b>", "{{ title }}"]
        header["model"] = {"name": MARKUP}

    data = resigned(general_file(), change)
    with page_of(browser, published(data, tmp_path)) as page:
        page.get_by_text("Ready.").wait_for()
        picture = {"name": f"{MARKUP}.png", "mimeType": "image/png", "buffer": encoded(noise())}
        page.locator("#picture").set_input_files(picture)
        assert {name for name, _ in rows(page)} == {MARKUP, "</script><b>", "{{ title }}"}
        assert page.title() == page.locator("h1").inner_text() == f"{MARKUP} in the browser"
        assert page.locator("img").count() == 0
        assert all(share.endswith(" %") for _, share in rows(page)), "its logits have a scale"


@pytest.mark.slow
def test_pictures_become_the_pixels_that_pillow_makes_but_for_a_level_and_images_have_the_references_logits(browser):
    seethrough = Image.fromarray(noise(30, 40)).convert("RGBA")
    seethrough.putalpha(Image.fromarray(np.where(np.arange(40) % 3, 255, 0).astype(np.uint8)[None].repeat(30, 0)))
    pictures = [
        encoded(noise(8, 8)),
        encoded(noise(33, 21, 1)),
        encoded(noise(5, 90, 2)),
        encoded(noise(150, 201, 3)),  # reduced before it is resampled
        encoded(noise(20, 20, 4, channels=1)),
        encoded(seethrough),
    ]
    with page_of(browser) as page:
        page.add_script_tag(content=module(*RUNNER, "pictures.mjs") + TOOLS, type="module")
        page.wait_for_function("globalThis.tools")
        for number, picture in enumerate(pictures):
            for fit in ("stretch", "crop", "pad"):
                form = image_format(9, 12, channels=3 if number % 2 else 1, fit=fit)
                wanted = read_picture(picture, form)
                found = np.array(page.evaluate(DECODED, [text(picture), list(wanted.shape), fit]))
                # Which side is resampled first depends on the version of Pillow, and both round in between.
                apart = np.abs(found.reshape(wanted.shape) - wanted)
                assert apart.max() <= 1 and (apart > 0).mean() < 0.35, (number, fit)
        data = released("glance")
        logits = page.evaluate(CLASSIFIED, [text(data), text(sample().tobytes())])
        assert digest(logits) == RELEASED["glance"]["answers_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("name", INTEGERS)
def test_every_released_file_has_its_logits_for_100_images_in_the_browser(browser, name):
    data = released(name)
    with page_of(browser) as page:
        page.add_script_tag(content=module(*RUNNER, "pictures.mjs") + TOOLS, type="module")
        page.wait_for_function("globalThis.tools")
        pixels = seen_by(decode(data), sample())
        logits = page.evaluate(CLASSIFIED, [text(data), text(pixels.tobytes())])
        assert digest(logits) == RELEASED[name]["answers_sha256"]
