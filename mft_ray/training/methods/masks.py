"""Masks, learned or cut once: the scores are trained, the backbone is frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from mft_ray.masking import MaskFile, Masks, fingerprint, load_mask, save_mask
from mft_ray.models.hub import origin_of
from mft_ray.models.loading import load_model
from mft_ray.models.names import MASK
from mft_ray.training.compute import autocast_dtype
from mft_ray.training.engine import gathered
from mft_ray.training.job import TrainJob
from mft_ray.training.methods.base import Method


class MaskScores(Method):
    """Trains the scores of a mask; what is kept is a mask file.

    Attributes:
        masks: on the model.
    """

    def __init__(self, model: PreTrainedModel, job: TrainJob, calibrate: Callable[[], object]) -> None:
        assert job.mask is not None
        self._job, self._settings, self._before = job, job.mask, ""
        self._origin = origin_of(job.model)
        before = None
        if job.mask.removes == "delta" and job.pretrained:
            earlier = load_model(job.pretrained)
            before, self._before = dict(earlier.named_parameters()), fingerprint(earlier)
        self.masks = Masks(model, job.mask, seed=job.train.seed, before=before, calibrate=calibrate, cache=_cache(job))
        self.parameters = self.masks.scores()

    @property
    def ratio(self) -> float:
        """The masking ratio in force."""
        return self.masks.ratio

    @property
    def eligible(self) -> bool:
        """Whether the ratio that was asked for has been reached."""
        return self.masks.at_full_ratio

    def update(self, progress: float) -> None:
        """Recompute the masks from the scores."""
        self.masks.update(progress, gather=gathered)

    def keep(self, out: Path) -> None:
        """Write the mask."""
        if dist.get_rank() == 0:
            content = MaskFile(self.masks.masks(), self._settings, self._job.backbone, self._before, self._origin)
            save_mask(out / MASK, content)

    def recall(self, out: Path) -> None:
        """Put the mask that was kept in force; the scores stay as they are."""
        self.masks.put(load_mask(out / MASK).masks)

    def free(self) -> None:
        """Take the masks off, but for a model that ZeRO-3 has left in pieces."""
        if self._job.scaling.zero_stage < 3:
            self.masks.unload()


def _cache(job: TrainJob) -> bool | torch.dtype:
    """Say whether W * M is kept between updates, and in which dtype."""
    return job.keeps_effective and (autocast_dtype(job.scaling) or True)
