"""One training run: the model, the optimizer's steps, and what is asked of the cluster."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from mft_ray.config.section import Section
from mft_ray.masking import Target
from mft_ray.utils.json_types import JsonObject

# How linear weights may be held that nothing is learned of.
UnselectedDtype = Literal["int8", "nf4"]


class ModelConfig(Section):
    """The model that FFT starts from, or that is already fine-tuned (``fft.given``)."""

    path: str | None = Field(None, description="local folder or hub id of any AutoModelForCausalLM")
    architecture: JsonObject | None = Field(
        None, description="instead of path: model_type and settings of a new, randomly initialised model"
    )
    pretrained: str | None = Field(
        None, description="with fft.given: the checkpoint before fine-tuning, for mask.removes delta"
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="how frozen weights are held")
    unselected_dtype: UnselectedDtype | None = Field(
        None,
        description="how linear weights outside the selection are held while a mask or an adapter is learned: int8, in "
        "1.02 bytes each, or nf4, in 0.56 (arXiv 2305.14314; bitsandbytes). What is learned is scored at its end, and "
        "judged, on the checkpoint as it is. Not with zero_stage 3. null: as dtype says",
    )
    attention: str | None = Field(None, description="attn_implementation passed to transformers")

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give exactly one of model.path and model.architecture")
        return self


class TrainConfig(Section):
    """One training run; the same fields for FFT and for masks."""

    steps: int = Field(300, ge=0, description="optimizer steps at most; 0 only evaluates the start")
    epochs: float | None = Field(None, gt=0, description="instead of steps: passes over the training split")
    max_tokens: int | None = Field(None, ge=1, description="stop after so many input tokens")
    examples: Literal["train", "held_out"] = Field(
        "train", description="held_out: those of data.n_held_out, which FFT has not seen"
    )
    batch_size: int = Field(32, ge=1, description="examples per optimizer step, over all workers")
    micro_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens per forward per worker, at most, padding included; an example of more goes alone. null: as "
        "many as fit the memory and pay. Halved where they are too many; the gradient is the same for any",
    )
    packing: bool | None = Field(
        None,
        description="put the examples of a micro-batch one behind the other instead of padding them; null: where "
        "model.attention is flash_attention_2 or later, which computes nothing between them. Where a model then gives "
        "other logits it is not done, and that is said",
    )
    optimizer: Literal["adamw", "adamw_8bit", "rmsprop"] = Field(
        "adamw",
        description="of what is trained, adamw keeps 8 bytes of states a number, rmsprop 4, and adamw_8bit 2 "
        "(arXiv 2110.02861; bitsandbytes)",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="how what is trained and its gradient are held. bfloat16 takes 4 bytes a number less, is rounded "
        "up or down by chance, and wants adamw_8bit and zero_stage 0",
    )
    lr: float = Field(2e-5, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(0.03, ge=0, lt=1, description="fraction of the steps")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    dropout: float = Field(
        0.0, ge=0, lt=1, description="of what each attention and MLP adds to the hidden state, while training"
    )
    clip: float = Field(1.0, ge=0, description="gradient norm; 0 is off")
    eval_every: int = Field(50, ge=1, description="steps between evaluations on validation")
    checkpoint_every: int = Field(1, ge=1, description="evaluations between checkpoints")
    eval_batch_size: int = Field(64, ge=1, description="examples scored at once at most; fewer where memory is short")
    patience: int | None = Field(None, ge=1, description="stop after so many evaluations without a new best")
    seed: int = 0

    @model_validator(mode="after")
    def _rounded_by_chance(self) -> TrainConfig:
        if self.dtype == "bfloat16" and self.optimizer != "adamw_8bit":
            raise ValueError(
                f"dtype is bfloat16 and optimizer {self.optimizer}, whose small changes bfloat16 would round away. Set "
                "optimizer to adamw_8bit, which rounds by chance, or dtype to float32"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        # A tree that was saved has every default in it: steps by default are steps that nobody asked for.
        if self.epochs is not None and self.steps != type(self).model_fields["steps"].default:
            raise ValueError(
                f"steps {self.steps} and epochs {self.epochs:g} are both given; leave one out (epochs: null where a "
                "file has them and steps are wanted)"
            )
        return self

    def in_steps(self, examples: int) -> TrainConfig:
        """Return the same with epochs turned into steps, once the training split is known.

        Args:
            examples: in the training split. The last step's batch may reach into one epoch more.
        """
        if self.epochs is None:
            return self
        return self.model_copy(update={"steps": math.ceil(self.epochs * examples / self.batch_size), "epochs": None})


class ScalingConfig(Section):
    """What one training run asks of the cluster."""

    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "cpu"] = Field(
        "none",
        description="cpu: the optimizer's states, and the copies of weights that it changes, are held and updated by "
        "the host of a GPU; slower, the same result. From zero_stage 1 on, also with one worker",
    )
    compute: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="dtype of matrix products; bfloat16 is autocast, and what is trained stays fp32. auto: bfloat16 "
        "where the device multiplies it (GPUs since Ampere, CPUs with AMX or AVX512-BF16), else float32; said",
    )
    gradient_checkpointing: bool = False
    prefix_cache_gb: float = Field(
        8,
        ge=0,
        description="on a node's temporary disk, for all of its workers: what frozen layers below the lowest trained "
        "one make of each example is kept and not computed again; 0: nothing is kept",
    )
    max_failures: int = Field(1, ge=0, description="restarts of a run whose worker died")
    silence_minutes: float | None = Field(
        None,
        gt=0,
        description="after so many without a sign of life from any worker of a group they are taken to hang, their "
        "stacks are kept and they are started anew; null: 10 times what the same has taken before, 5 at least, 30 "
        "where it is done for the first time",
    )
    wait_for_resources_s: float = Field(900, gt=0, description="how long the cluster may take to grow")
    network_interface: str | None = Field(
        None,
        min_length=1,
        description="by which the workers of a run reach each other, such as ib0; every host must have it. null: what "
        "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME say, else that of the node's address in Ray",
    )
    cluster_grows_to: dict[str, float] | None = Field(
        None, description="what an autoscaling cluster can become, such as {CPU: 64, GPU: 8}; null: found out"
    )

    @model_validator(mode="after")
    def _can_offload(self) -> ScalingConfig:
        if self.offload != "none" and self.zero_stage == 0:
            raise ValueError(
                f"offload is {self.offload} and zero_stage 0, at which DeepSpeed keeps the optimizer with the weights. "
                "Set zero_stage to 1, 2 or 3 (one worker will do), or offload to none"
            )
        return self

    @model_validator(mode="after")
    def _whole_gpus(self) -> ScalingConfig:
        gpus = self.gpus_per_worker
        if gpus > 1 and gpus % 1:
            raise ValueError(
                f"gpus_per_worker is {gpus:g}; above 1 it must be a whole number, since Ray gives whole GPUs"
            )
        if gpus % 1 and self.workers > 1:
            raise ValueError(
                f"gpus_per_worker is {gpus:g} and workers is {self.workers}: two workers of a run could be put on one "
                "GPU, which NCCL refuses. Set gpus_per_worker to 1, or workers to 1 (several trials then share a GPU)"
            )
        return self


class LoraConfig(Section):
    """The rival that adds low-rank matrices to frozen projections; the paper's setting of it."""

    rank: int = Field(64, ge=1)
    alpha: int = Field(16, ge=1, description="the change is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the adapters' input")
    layers: str = Field("all", description="layer group, such as 4-7, or all")
    target: Target = "both"
    lr: float | None = Field(2e-4, gt=0, description="null takes train.lr, which suits scores")


class FftTrainConfig(TrainConfig):
    """As `TrainConfig`, but by default until validation stops improving."""

    steps: int = Field(2000, ge=1, description="optimizer steps at most")
    patience: int | None = Field(5, ge=1, description="stop after so many evaluations without a new best")


class FftConfig(Section):
    """The FFT baseline: given, or trained here until validation stops improving."""

    given: bool = Field(False, description="model.path is already fine-tuned: take it as the baseline")
    train: FftTrainConfig = FftTrainConfig()
    scaling: ScalingConfig | None = Field(None, description="what FFT asks of the cluster; null: as scaling")
    continued_lr: float | None = Field(None, gt=0, description="lr of continued FFT; null takes fft.train.lr")
