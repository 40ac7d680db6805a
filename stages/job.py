"""One run of a stage: it opens the data and writes the results. `trainer.py` adds training."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from common import CHECKPOINTS, MANIFEST, METRICS, commit, run

from micronet import params as parameters
from micronet.pipeline import MADE_OF

if TYPE_CHECKING:
    from micronet.data.arrays import Description
    from micronet.data.images import Split, SplitName
    from micronet.training.reporting import Reporter


@dataclass
class Job:
    """One run of a stage: its params, its inputs, where its outputs go."""

    script: Path
    params: parameters.Params
    flags: argparse.Namespace
    reporter: Reporter
    began: float = field(default_factory=time.monotonic)
    commit: str | None = field(default_factory=commit)  # at the start: later commits have no part in the run
    opened: dict[str, Split] = field(default_factory=dict)  # splits by name
    trains: ClassVar[bool] = False  # a training stage reports its position itself, when training begins

    @property
    def stage(self) -> str:
        """The stage's name: that of its script."""
        return self.script.stem

    def split(self, name: SplitName) -> Split:
        """`train`, `validation` or `test`, verified; rebuilt first if it is missing or damaged."""
        from micronet.data.store import open_split

        if name not in self.opened:
            found = open_split(self.params.data, name, manifest_path=MANIFEST, report=self.reporter.say)
            self.opened[name] = found
        return self.opened[name]

    @cached_property
    def data(self) -> Description:
        """The shape of the images and the names of their classes."""
        from micronet.data.datasets import described

        return described(self.params.data)

    def metrics(self, **values: Any) -> None:
        """Writes `metrics/STAGE.json`: flat, units in the keys."""
        from micronet.files import write_json

        write_json(METRICS / f"{self.stage}.json", values)

    def params_digest(self, *sections: str) -> str:
        """A digest of the params sections that a result came from."""
        return parameters.digest(self.params.seed, *(getattr(self.params, section) for section in sections))

    def digest_of(self, checkpoint: str) -> str:
        """The digest of the params that a checkpoint of the path has if it was made with the current ones."""
        return self.params_digest(*MADE_OF[checkpoint])

    def record_run(self, *, params_digest: str, **facts: Any) -> None:
        """Writes `metrics/runs/STAGE.json`, which differs from run to run."""
        import resource

        from micronet.data.store import source_of
        from micronet.files import write_json

        record = {
            "commit": self.commit,
            "params_digest": params_digest,
            "data_source": source_of(self.params.data),
            "seconds": round(time.monotonic() - self.began, 1),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        write_json(METRICS / "runs" / f"{self.stage}.json", record | facts)

    def perform(self, work: Callable[[Self], int | None]) -> int | None:
        """Does the stage's work. Returns what `work` returns."""
        return work(self)

    @classmethod
    def main(
        cls,
        script: str,
        description: str,
        work: Callable[[Self], int | None],
        flags: dict[str, str] | None = None,
        more: Callable[[argparse.ArgumentParser], None] | None = None,
    ) -> int:
        """Runs a stage script as `common.run` does, giving `work` a job. Returns the exit code."""

        def started(params: parameters.Params, switches: argparse.Namespace, reporter: Reporter) -> int | None:
            from micronet.data.datasets import standing_in
            from micronet.files import check_place

            if line := standing_in(params.data):
                reporter.say(line)
            for folder in (METRICS / "curves", METRICS / "runs", CHECKPOINTS):
                check_place(folder)  # before hours of work, not after
            if reporter.place and not cls.trains:
                reporter.say(reporter.place)
            return cls(Path(script), params, switches, reporter).perform(work)

        return run(script, description, started, flags, more)
