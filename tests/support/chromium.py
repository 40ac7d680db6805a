"""Debian's Chromium, headless and offline, driven by Playwright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.javascript import tool


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser. Fails with a line saying how to install it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=tool("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Browser, place: Path | None = None, **context: Any) -> Iterator[Page]:
    """An offline page, of a file or empty; at the end its console must be empty, and nothing may have been fetched."""
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
