"""The DeepSpeed engine around a model: what is optimized, how, at which ZeRO stage."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from mft_ray.config import ScalingConfig, TrainConfig
from mft_ray.models.loading import DTYPES
from mft_ray.training.step.optimizers import build_optimizer, lr_factor

# Asked which of its own operations this machine could compile, DeepSpeed tries, and then builds one that only
# inference uses: a minute and a C++ compiler on every node. None is needed here.
deepspeed.ops.__compatible_ops__ = {}


def build_engine(
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    train: TrainConfig,
    scaling: ScalingConfig,
) -> Any:
    """Return a DeepSpeed engine over a model.

    What is trained becomes ``train.dtype``, by default fp32, in which small updates do not vanish: a parameter at a
    time, as ZeRO-3 shards the model, so that it is never there a second time.

    Args:
        model: with masks attached, if any.
        parameters: the trainable ones only; DeepSpeed keeps optimizer state for nothing else.
        train: optimizer and schedule.
        scaling: workers, ZeRO stage and compute dtype.
    """
    settings: dict[str, Any] = {
        # Micro-batches are filled by tokens, and so not equally many in every step: who trains says which is the last
        # (`set_gradient_accumulation_boundary`), and divides by the answer tokens of the global batch.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.clip,
        "zero_optimization": {"stage": scaling.zero_stage},
        # Its own optimizer for the host needs a compiler on the workers.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        # Any that works on each weight by itself can be sharded; DeepSpeed has tested only Adam.
        "zero_allow_untested_optimizer": True,
    }
    if scaling.offload == "cpu":
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if scaling.compute == "bfloat16":
        # Autocast rather than bf16 weights: scores keep fp32, where they do not tie at the threshold.
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    if scaling.zero_stage == 3:
        _shard(model, settings)
    trained = list(parameters)
    for parameter in trained:
        _cast(parameter, DTYPES[train.dtype])
    optimizer = build_optimizer(trained, train)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(train, step))
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=scheduler, config=settings, dist_init_required=False
    )
    return engine


def _shard(model: nn.Module, settings: dict[str, Any]) -> None:
    """Leave each worker its share of a model's parameters, those of one module after the other."""
    for module in reversed(list(model.modules())):  # what is inside a module before its own
        own = [parameter for parameter in module.parameters(recurse=False) if not _sharded(parameter)]
        for parameter in own:
            if parameter.requires_grad:
                _cast(parameter, torch.float32)
        if own:
            deepspeed.zero.Init(module=module, config_dict_or_path=settings)


def _cast(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    if not _sharded(parameter):  # there it has been cast already, and is in pieces
        parameter.data = parameter.data.to(dtype)


def _sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")


def gathered(parameters: list[nn.Parameter], changed: bool = False) -> AbstractContextManager[object]:
    """Make parameters that ZeRO-3 has sharded whole for a while; anything else is whole already.

    Args:
        parameters: every worker must name the same.
        changed: what the first worker writes to them meanwhile is kept.
    """
    if not any(map(_sharded, parameters)):
        return nullcontext()
    context: AbstractContextManager[object] = deepspeed.zero.GatheredParameters(
        parameters, modifier_rank=0 if changed else None
    )
    return context


def gathered_state(model: nn.Module, dtype: torch.dtype, folder: Path) -> dict[str, torch.Tensor]:
    """Return, on the first worker, all parameters, whole, on the CPU, in the given dtype, and persistent buffers.

    Every worker must call it; others keep nothing. What is on the CPU in that dtype already is not copied: it changes
    with the model. What is copied lies on the disk, so that no second model takes memory that the kernel cannot take
    back.

    Args:
        model: the model.
        dtype: of the parameters that are returned.
        folder: where there is room for a file, which has no name and goes with the tensors.
    """
    parameters = dict(model.named_parameters())
    first = not dist.is_initialized() or dist.get_rank() == 0
    copied = {name: _shape(each) for name, each in parameters.items() if _sharded(each) or not _as_is(each, dtype)}
    state = _on_disk(copied, dtype, folder) if first else {}
    for name, parameter in parameters.items():
        with gathered([parameter]):
            if first and name in copied:
                state[name].copy_(parameter.detach())
            elif first:
                state[name] = parameter.detach().contiguous()
    if first:
        kept = model.state_dict().keys()
        state.update({name: buffer.detach().cpu() for name, buffer in model.named_buffers() if name in kept})
    return state


def _as_is(parameter: nn.Parameter, dtype: torch.dtype) -> bool:
    return parameter.device.type == "cpu" and parameter.dtype == dtype


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of a parameter when it is whole."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _on_disk(shapes: Mapping[str, torch.Size], dtype: torch.dtype, folder: Path) -> dict[str, torch.Tensor]:
    """Return tensors over a file that nobody else sees, each its own storage: transformers copies shared ones."""
    sizes = {name: shape.numel() * dtype.itemsize for name, shape in shapes.items()}
    if not (total := sum(sizes.values())):
        return {}
    with tempfile.NamedTemporaryFile(prefix=".state-", dir=folder) as file:
        # Now: where the disk is full, whoever wrote to the mapping would be killed.
        os.posix_fallocate(file.fileno(), 0, total)
        every = np.memmap(file.name, np.uint8, "r+", shape=total)
    parts = np.split(every, list(itertools.accumulate(sizes.values()))[:-1])
    return {
        name: torch.from_numpy(part).view(dtype).view(shapes[name]) for name, part in zip(sizes, parts, strict=True)
    }
