"""Debian's Chromium, without a window and without a network, driven by Playwright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.javascript import tool


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser. Fails with a line that says how to get it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=tool("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Browser, place: Path | None = None, **context: Any) -> Iterator[Page]:
    """A page offline, that of a file or an empty one; in the end its console is empty, and it fetched nothing."""
    opened = browser.new_context(offline=True, **context)
    page, said, asked = opened.new_page(), list[str](), list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.set_default_timeout(30_000)
    page.goto(f"file://{place}" if place else "about:blank")
    yield page
    opened.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
