"""The dtype that a worker computes in, where the configuration leaves it open."""

from __future__ import annotations

import torch
import torch.distributed as dist

from mft_ray.config import ScalingConfig

# What processors call instructions that multiply bfloat16, as `torch.cpu.get_capabilities` names them.
_ON_CPU = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")


def settled(scaling: ScalingConfig, device: torch.device) -> tuple[ScalingConfig, str]:
    """Return what a configuration leaves open as the workers of a group can do it, alike on all.

    Args:
        scaling: ``compute`` may be ``auto``.
        device: device of this worker.

    Returns:
        The same with a dtype, and what there is to say of it.
    """
    if scaling.compute != "auto":
        return scaling, ""
    fast = torch.tensor(int(multiplies_bfloat16(device)), device=device)
    dist.all_reduce(fast, op=dist.ReduceOp.MIN)
    dtype = "bfloat16" if int(fast) else "float32"
    can = "multiplies bfloat16" if int(fast) else "does not multiply bfloat16 on every worker"
    return scaling.model_copy(update={"compute": dtype}), f"computes in {dtype}: {_named(device)} {can}"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Say whether a device has instructions for it: elsewhere it is computed in fp32 step by step, and is slower.

    Args:
        device: a CPU or a GPU.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in _ON_CPU)


def autocast_dtype(scaling: ScalingConfig) -> torch.dtype | None:
    """Return what forwards are autocast to; None is the model's own dtype."""
    return torch.bfloat16 if scaling.compute == "bfloat16" else None


def _named(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities().get("cpu_name", "the processor"))
