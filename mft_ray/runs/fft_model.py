"""The FFT model of a run: what masks are learned on and held against."""

from __future__ import annotations

from pathlib import Path

from mft_ray.runs.records import FileRecord


class FftModel(FileRecord):
    """work/fft_model.json: the backbone of all masks, and what they are held against.

    Attributes:
        model: folder or hub id of the model.
        fingerprint: fingerprint of its checkpoint.
        depth: number of decoder layers.
        score: validation score by the metric that decides.
        standard_error: standard error of ``score``.
        watched: validation score by the metric that is monitored while training.
        scores: file with the validation scores by that metric, one per example.
        pretrained: folder or hub id of the model before fine-tuning, where that is known.
    """

    model: str
    fingerprint: str
    depth: int
    score: float
    standard_error: float
    watched: float
    scores: str
    pretrained: str | None = None

    def moved(self, old: Path, new: Path) -> FftModel:
        """Return the same record of a run that was copied.

        Args:
            old: folder of the run that was copied.
            new: folder of the copy.
        """
        given = {name: getattr(self, name) for name in ("model", "scores", "pretrained")}
        return self.model_copy(update={name: path and moved(path, old, new) for name, path in given.items()})


def moved(path: str, old: Path, new: Path) -> str:
    """Return where a path within one folder lies within its copy; any other path, or a hub id, stays.

    Args:
        path: path, or hub id.
        old: the folder.
        new: its copy.
    """
    return str(new / Path(path).relative_to(old)) if Path(path).is_relative_to(old) else path
