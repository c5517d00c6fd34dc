"""What can be done to a model, by name, each a small piece behind one interface (`base.Method`)."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from mft_ray.training.job import TrainJob
from mft_ray.training.methods.base import Method
from mft_ray.training.methods.full import EveryWeight
from mft_ray.training.methods.lora import Lora
from mft_ray.training.methods.masks import MaskScores

__all__ = ["Method", "attach"]


def attach(model: PreTrainedModel, job: TrainJob, tokenizer: Tokenizer, calibrate: Callable[[], object]) -> Method:
    """Put on a model what a job trains.

    Args:
        model: on its device.
        job: its ``mask`` or its ``lora`` is what is put on; with neither every weight is trained.
        tokenizer: saved beside a fine-tuned model.
        calibrate: runs the model on a few training examples.
    """
    if job.mask is not None:
        return MaskScores(model, job, calibrate)
    return Lora(model, job) if job.lora is not None else EveryWeight(model, job, tokenizer)
