"""The FFT model of a run: what masks are learned on and held against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Baseline:
    """The FFT model: backbone of all masks, and what they are held against.

    Attributes:
        model: folder or hub id.
        fingerprint: of its checkpoint.
        depth: decoder layers.
        score: on validation.
        standard_error: of that score.
        watched: on validation too, by the metric that training is watched by.
        scores: file with its validation scores by that metric, one per example.
        before: folder or hub id of the model before fine-tuning, where that is known.
    """

    model: str
    fingerprint: str
    depth: int
    score: float
    standard_error: float
    watched: float
    scores: str
    before: str | None = None
