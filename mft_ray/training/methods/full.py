"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from mft_ray.models.export import save_model
from mft_ray.models.loading import DTYPES, load_model
from mft_ray.models.names import MODEL
from mft_ray.training.engine import gathered, gathered_state
from mft_ray.training.job import TrainJob
from mft_ray.training.methods.base import Method


class EveryWeight(Method):
    """Trains a model as it is; what is kept is a Hugging Face folder."""

    def __init__(self, model: PreTrainedModel, job: TrainJob, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer, self._dtype = model, tokenizer, DTYPES[job.dtype]
        self.parameters = list(model.parameters())

    def keep(self, out: Path) -> None:
        """Write the model."""
        state = gathered_state(self._model, self._dtype, out)
        if dist.get_rank() == 0:
            save_model(self._model, state, self._tokenizer, out / MODEL)

    def recall(self, out: Path) -> None:
        """Read the model's weights back."""
        kept = dict(load_model(out / MODEL).named_parameters())
        for name, parameter in self._model.named_parameters():
            with gathered([parameter], changed=True), torch.no_grad():
                parameter.copy_(kept[name])

    def free(self) -> None:
        """Do nothing: a model that was trained is not used again."""
