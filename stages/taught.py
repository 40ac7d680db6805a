"""What the stages that learn from the teacher share: it answers every image anew, or fixed views once for all."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from common import CHECKPOINTS, MANIFEST
from dependencies import digests, families
from trainer import STATE, TrainingJob

from micronet import params as parameters
from micronet.console import duration
from micronet.files import checksum

if TYPE_CHECKING:
    from torch import Tensor, nn

    from micronet.training.constraints import Constraint
    from micronet.training.loop import TrainResult
    from micronet.training.sampling import Sampler
    from micronet.training.state import ResumeState
    from micronet.training.views import Views

ANSWERS = STATE / "answers"  # a folder for each combination of teacher and views; the stages of a pipeline share them
KEPT = 2  # how many folders of other teachers or views are kept


class TaughtJob(TrainingJob):
    """A run of a stage that trains with the teacher's answers."""

    def teacher(self) -> nn.Module:
        """The teacher, ready to answer."""
        return self.load("teacher").model()

    def learn(
        self,
        model: nn.Module,
        section: parameters.Taught,
        *,
        state: ResumeState | None,
        constraint: Constraint | None = None,
    ) -> TrainResult:
        """Trains the model as the params section says."""
        from micronet.training.distillation import distilled

        config = section.train
        loss = distilled(self.teacher, section, self.machine, label_smoothing=config.label_smoothing)
        sampler = self._sampler(model, section) if section.views and section.alpha and config.epochs else None
        return self.train(model, config, state=state, loss=loss, sampler=sampler, constraint=constraint)

    def _sampler(self, model: nn.Module, section: parameters.Taught) -> Sampler:
        """A sampler for fixed views, with answers read from `ANSWERS`, or computed and written there."""
        import torch

        from micronet.training.distillation import check_same_classes
        from micronet.training.interruption import Interrupted, orphan_watch
        from micronet.training.trial import class_count
        from micronet.training.views import answers_to_view, check_memory, fixed_views, known_answers, mean_of_pairs

        images, augment = self.split("train").images, section.train.augment
        classes = class_count(model, images, self.machine, batch_size=2, trains=False)
        check_memory(section.views, len(images), classes, self.machine, self.member.size)
        seed, pairs = zlib.crc32(f"{self.params.seed} views".encode()), section.mirror_answers
        views = fixed_views(section.views, images, augment, seed, pairs=pairs)
        digest = self._answers_digest(views)
        kept = Answers(digest, alone=self.member.first)
        answers, orphaned, teacher = kept.read(len(views)), orphan_watch(), None
        images = images.to(self.machine.device) if len(answers) < len(views) else images
        known, began = len(answers), time.monotonic()
        for view in range(known, len(views)):
            if teacher is None:
                teacher = self.teacher()
                check_same_classes(class_count(teacher, images, self.machine, batch_size=2, trains=False), classes)
            each = (time.monotonic() - began) / max(1, view - known)
            left = f", {duration(each * (len(views) - view))} left" if view > known else ""
            self.reporter.say(f"the teacher answers view {view + 1} of {len(views)}{left}")
            size = self.params.engine.evaluation_batch_size
            answers.append(answers_to_view(teacher, images, views, view, self.machine, size, self.reporter.watch))
            kept.write(view, answers[-1])
            if orphaned():
                raise Interrupted(f"stopped after view {view + 1}; the answers are saved, the same command goes on")
        stacked = mean_of_pairs(torch.stack(answers)) if pairs else torch.stack(answers)
        return known_answers(views, stacked, self.machine)

    def _answers_digest(self, views: Views) -> str:
        """A digest of everything that determines the answers: teacher, views, data, engine, code."""
        code = digests("stages/taught.py", *families(self.params.teacher.model.spec()))
        inputs = [path for path in (MANIFEST, CHECKPOINTS / "teacher.safetensors") if path.is_file()]
        parts = [json.dumps(code), *(checksum(path) for path in inputs)]
        parts += [hashlib.sha256(table.numpy().tobytes()).hexdigest() for table in views.tables().values()]
        parts += [parameters.digest(self.params.engine), str(views.padding)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


class Answers:
    """A teacher's answers to fixed views, one file per view: a run that is stopped loses at most one view.

    Args:
        digest: of everything that determines them. alone: whether no other process is using other teachers' answers.
    """

    def __init__(self, digest: str, *, alone: bool):
        self.digest, self.folder = digest, ANSWERS / digest
        others = [path for path in ANSWERS.glob("*") if path.is_dir() and path != self.folder] if alone else []
        for other in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
            shutil.rmtree(other, ignore_errors=True)

    def read(self, views: int) -> list[Tensor]:
        """The answers to the first views, (M, classes) each, up to the first missing or damaged one."""
        import safetensors

        found: list[Tensor] = []
        for view in range(views):
            try:
                with safetensors.safe_open(self._path(view), framework="pt") as file:
                    if json.loads((file.metadata() or {})["micronet"]) != [self.digest, view]:
                        break
                    found.append(file.get_tensor("answers"))
            except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError):
                break
        return found

    def write(self, view: int, answers: Tensor) -> None:
        import safetensors.torch

        from micronet.files import write_atomically

        said = {"micronet": json.dumps([self.digest, view])}
        write_atomically(self._path(view), safetensors.torch.save({"answers": answers}, said))

    def _path(self, view: int) -> Path:
        return self.folder / f"{view}.safetensors"
