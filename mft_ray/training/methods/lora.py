"""LoRA (arXiv 2106.09685), by peft: low-rank changes of the projections are trained, the backbone is frozen."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
import torch.distributed as dist
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from mft_ray.config import LoraConfig
from mft_ray.errors import UserError
from mft_ray.masking import select
from mft_ray.models.adapter import save_adapter
from mft_ray.models.hub import origin_of
from mft_ray.models.names import ADAPTER
from mft_ray.training.engine import gathered
from mft_ray.training.job import TrainJob
from mft_ray.training.methods.base import Method


class Lora(Method):
    """Trains an adapter; what is kept is a peft folder."""

    def __init__(self, model: PreTrainedModel, job: TrainJob) -> None:
        assert job.lora is not None
        self._job, self._origin = job, origin_of(job.model)
        torch.manual_seed(job.train.seed)  # of A; B is zero, so that step 0 is the backbone
        # It changes the model in place: who calls that calls it with its adapter.
        self._wrapped = peft.get_peft_model(model, _settings(model, job.lora))
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def keep(self, out: Path) -> None:
        """Write the adapter."""
        with gathered(self.parameters):
            state = get_peft_model_state_dict(self._wrapped, self._trained())
        if dist.get_rank() == 0:
            save_adapter(self._wrapped, state, self._job.backbone, out / ADAPTER, self._origin)

    def recall(self, out: Path) -> None:
        """Read the adapter back."""
        with gathered(self.parameters, changed=True):
            set_peft_model_state_dict(self._wrapped, load_peft_weights(str(out / ADAPTER), device="cpu"))

    def free(self) -> None:
        """Take the adapter off, but for a model that ZeRO-3 has left in pieces."""
        if self._job.scaling.zero_stage < 3:
            self._wrapped.unload()

    def _trained(self) -> dict[str, torch.Tensor]:
        return {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in self._wrapped.named_parameters()
            if parameter.requires_grad
        }


def _settings(model: PreTrainedModel, lora: LoraConfig) -> peft.LoraConfig:
    """Return peft's own settings.

    Raises:
        UserError: a projection is no linear layer.
    """
    weights = select(model, lora.layers, lora.target)
    for weight in weights:
        module = model.get_submodule(weight.module)
        if weight.parameter != "weight" or not (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"):
            raise UserError(
                f"LoRA is put on linear layers, and {weight.name} is not one's weight. Set lora.target and lora.layers "
                "to projections that are, or leave the method out."
            )
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[weight.module for weight in weights],
        fan_in_fan_out=any(type(model.get_submodule(weight.module)).__name__ == "Conv1D" for weight in weights),
        bias="none",
        task_type="CAUSAL_LM",
    )
