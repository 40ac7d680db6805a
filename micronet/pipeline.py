"""The stages by name, in order: the checkpoint that each writes, and the params that it came from."""

from __future__ import annotations

CHECKPOINT_OF = {
    "train_teacher": "teacher",
    "train_student": "student",
    "distill": "distilled",
    "prune": "pruned",
    "retrain": "retrained",
    "quantize": "quantized",
}
MADE_BY = {checkpoint: stage for stage, checkpoint in CHECKPOINT_OF.items()}
TRAINING_STAGES = tuple(CHECKPOINT_OF)
STAGES = ("prepare_data", *TRAINING_STAGES, "score")
MADE_OF = {  # the params sections that determine each checkpoint
    "teacher": ("teacher",),
    "student": ("student",),
    "distilled": ("teacher", "student", "distill"),
    "pruned": ("teacher", "student", "distill", "prune"),
    "retrained": ("teacher", "student", "distill", "prune", "retrain"),
    "quantized": ("teacher", "student", "distill", "prune", "retrain", "quantize"),
}
HALF_ABOVE_PARAMETERS = 1_000_000  # checkpoints of larger models hold 16-bit floats, so that a release stays small
