"""What the user sees of a run: the epoch table of the deck, and one refreshing line on a terminal.

It does not affect results, so no stage depends on it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from micronet.console import Sparingly, duration, live, width
from micronet.data.progress import Advance, progress_bar
from micronet.training.reporting import EpochRow, Reporter

HEADER = f"{'epoch':>9}  {'lr':>8}  {'train loss':>10}  {'train acc.':>10}  {'valid acc.':>10}  {'seconds':>7}"
STEPS_COMPARED = 20
COMPILED = 5.0  # a first step this long (seconds) counts as compiling if the second takes a tenth of it
LONG = 30.0  # seconds of a run above which its expected duration is reported
SLOWER = 5  # times: other programs on the cores made steps 5 to 80 times slower on two threads, twice on one


class TerminalReporter(Reporter):
    """Prints to stderr: a line per epoch and how long the run will take; also progress, images per second and time
    left, continuously on a terminal, elsewhere as an occasional line.

    A stderr that nobody reads any more does not stop the run.

    Args:
        place: the stage's position in its pipeline, such as `stage 3 of 8`; printed when training begins.
    """

    def __init__(self, title: str, place: str = ""):
        self.title, self.place = title, place
        self.live = live(sys.stderr)
        self.epochs = self.images = self.first = self.before = 0
        self.began = self.shown = 0.0
        self.pace, self.lines = Pace(), Sparingly(0.0)
        self.steps = 0  # in this run
        self.second = 0.0, 0  # when the second step began, and after how many images

    @contextmanager
    def watch(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        self._clear()
        with progress_bar(title, total, unit, self.say) as told:
            yield told

    def say(self, line: str) -> None:
        self._clear()
        self._print(f"{self.title}: {line}")

    def start(self, *, epochs: int, images: int, epoch: int, done: int = 0) -> None:
        self.before = done
        if self.place and epoch < epochs:
            self.say(f"{self.place}, {epochs - epoch} epochs of {images:,} images")
        self.epochs, self.images, self.first, self.began = epochs, images, epoch, time.monotonic()
        self.pace, self.lines, self.steps = Pace(), Sparingly(self.began), 0
        if epoch < epochs and width() >= len(HEADER):
            self._print(HEADER)

    def step(self, *, epoch: int, images: int, loss: float) -> None:
        now = time.monotonic()
        if slower := self.pace.slower(now):
            self.say(
                f"steps take {slower:.0f} times as long as at first: other programs use the processor; with "
                "engine.threads: 1 that costs far less"
            )
        self.steps += 1
        if self.steps == 1:
            self.second = now, images
        elif self.steps == 2 and self.second[0] - self.began > max(COMPILED, 10 * (now - self.second[0])):
            self.began, self.before = self.second  # the first step compiled, so its time says nothing about the others
        if self.live and now - self.shown < 0.2 and self.steps != STEPS_COMPARED:
            return
        total = (epoch - 1 - self.first) * self.images + images - self.before
        speed = total / max(1e-9, now - self.began)
        left = ((self.epochs - self.first) * self.images - self.before - total) / max(1e-9, speed)
        if self.steps == STEPS_COMPARED and left > LONG:
            self.say(f"{self.epochs - self.first} epochs will take about {duration(now - self.began + left)}")
        line = (
            f"epoch {epoch}/{self.epochs}  {100 * images // self.images:3d} %  loss {loss:.3f}  "
            f"{speed:,.0f} images/s  {duration(left)} left"
        )
        if self.live:
            self.shown = now
            line = f"{self.title}: {line}"[: max(1, width() - 1)]  # a line that wraps could not be erased
            self._print(f"\r\x1b[2K{line}", end="")
        elif self.lines.due(now):
            self.say(line)

    def epoch(self, row: EpochRow, seconds: float) -> None:
        self._clear()
        self.pace.pause()
        self.lines.last = time.monotonic()
        line = (
            f"{row.epoch:>5}/{self.epochs:<3}  {row.learning_rate:>8.5f}  {row.train_loss:>10.4f}  "
            f"{row.train_accuracy_percent:>8.2f} %  {row.validation_accuracy_percent:>8.2f} %  {seconds:>7.1f}"
        )
        if width() < len(HEADER):
            line = (
                f"epoch {row.epoch}/{self.epochs}\n  lr {row.learning_rate:.5f}\n  train loss {row.train_loss:.4f}\n"
                f"  train acc. {row.train_accuracy_percent:.2f} %\n"
                f"  valid acc. {row.validation_accuracy_percent:.2f} %\n  seconds {seconds:.1f}"
            )
        self._print(line)

    def stop(self) -> None:
        self._clear()

    def _clear(self) -> None:
        if self.live:
            self._print("\r\x1b[2K", end="")

    def _print(self, text: str, end: str = "\n") -> None:
        try:
            print(text, end=end, file=sys.stderr, flush=True)
        except (OSError, ValueError):
            self.live = False


class Pace:
    """Notices when steps become much slower, which means that other programs use the processor too."""

    def __init__(self) -> None:
        self.last: float | None = None
        self.recent: deque[float] = deque(maxlen=STEPS_COMPARED)
        self.best = float("inf")
        self.said = False

    def pause(self) -> None:
        """The time until the next step is not part of a step: an evaluation, a save."""
        self.last = None

    def slower(self, now: float) -> float | None:
        """How many times slower the last steps were than the fastest earlier ones, if `SLOWER` or more; only once."""
        before, self.last = self.last, now
        if self.said or before is None:
            return None
        self.recent.append(now - before)
        if len(self.recent) < STEPS_COMPARED:
            return None
        typical = max(1e-9, statistics.median_low(self.recent))  # ignores a single slow step, such as a save
        self.best = min(self.best, typical)
        if typical < SLOWER * self.best or not _threaded():
            return None
        self.said = True
        return typical / self.best


def _threaded() -> bool:
    torch = sys.modules.get("torch")  # loaded by now if this is a run
    return torch is not None and torch.get_num_threads() > 1
