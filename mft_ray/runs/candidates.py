"""What is scored: a model, or a mask or an adapter on one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mft_ray.models.names import MODEL, find


@dataclass(frozen=True)
class Candidate:
    """What is scored.

    Attributes:
        name: name of its files among the run's scores.
        model: folder or hub id.
        artifact: mask file or adapter folder to put on it, if any.
        pretrained: model before fine-tuning, for a mask that removes the delta.
    """

    name: str
    model: str
    artifact: str | None = None
    pretrained: str | None = None


def candidate_from(out: Path, name: str, backbone: str, pretrained: str | None) -> Candidate:
    """Return what a run left in its folder: a model of its own, or a mask or an adapter on the backbone.

    Args:
        out: folder of the run.
        name: name of its files among the scores.
        backbone: folder or hub id of the model that the run started from.
        pretrained: folder or hub id of the model before fine-tuning, where that is known.
    """
    artifact = find(out)
    assert artifact is not None, f"nothing was kept in {out}"
    if artifact.name == MODEL:
        return Candidate(name, str(artifact))
    return Candidate(name, backbone, str(artifact), pretrained)
