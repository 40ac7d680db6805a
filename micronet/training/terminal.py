"""What a person sees of a run: the epoch table of the deck, and one refreshing line on a terminal.

It decides no result, so it is no dependency of any stage.
"""

from __future__ import annotations

import sys
import time

from micronet.training.reporting import EpochRow, Reporter


class TerminalReporter(Reporter):
    """Prints to stderr: a line an epoch; on a terminal also progress, images a second and time left."""

    def __init__(self, title: str):
        self.title = title
        self.live = sys.stderr.isatty()
        self.epochs = self.images = self.first = self.done = 0
        self.began = self.shown = 0.0

    def say(self, line: str) -> None:
        self._clear()
        print(f"{self.title}: {line}", file=sys.stderr)

    def start(self, *, epochs: int, images: int, epoch: int) -> None:
        self.epochs, self.images, self.first, self.began = epochs, images, epoch, time.monotonic()
        if epoch < epochs:
            header = (
                f"{'epoch':>9}  {'lr':>8}  {'train loss':>10}  {'train acc.':>10}  {'valid acc.':>10}  {'seconds':>7}"
            )
            print(header, file=sys.stderr)

    def step(self, *, epoch: int, images: int, loss: float) -> None:
        now = time.monotonic()
        if not self.live or now - self.shown < 0.2:
            return
        self.shown = now
        total = (epoch - 1 - self.first) * self.images + images
        speed = total / max(1e-9, now - self.began)
        left = ((self.epochs - self.first) * self.images - total) / max(1e-9, speed)
        line = (
            f"{self.title}: epoch {epoch}/{self.epochs}  {100 * images // self.images:3d} %  loss {loss:.3f}  "
            f"{speed:,.0f} images/s  {int(left) // 60}:{int(left) % 60:02d} left"
        )
        print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)

    def epoch(self, row: EpochRow, seconds: float) -> None:
        self._clear()
        line = (
            f"{row.epoch:>5}/{self.epochs:<3}  {row.learning_rate:>8.5f}  {row.train_loss:>10.4f}  "
            f"{row.train_accuracy_percent:>8.2f} %  {row.validation_accuracy_percent:>8.2f} %  {seconds:>7.1f}"
        )
        print(line, file=sys.stderr, flush=True)

    def stop(self) -> None:
        self._clear()

    def _clear(self) -> None:
        if self.live:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
