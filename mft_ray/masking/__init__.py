"""Mask Fine-Tuning itself: for any `torch.nn.Module` with linear layers, in any training loop."""

from typing import get_args

from mft_ray.masking.file import MaskFile, load_mask, save_mask
from mft_ray.masking.fingerprint import fingerprint
from mft_ray.masking.model import Masks, WeightMask, apply_masks
from mft_ray.masking.schedule import full_ratio_reached, ratio_at
from mft_ray.masking.select import decoder_layers, depth, select
from mft_ray.masking.settings import Init, MaskSettings, Schedule, Target, check_ratio, parse_layers
from mft_ray.masking.topk import keep_mask, removed_count

INITS: tuple[str, ...] = get_args(Init)
SCHEDULES: tuple[str, ...] = get_args(Schedule)
TARGETS: tuple[str, ...] = get_args(Target)

__all__ = [
    "INITS",
    "SCHEDULES",
    "TARGETS",
    "Init",
    "MaskFile",
    "MaskSettings",
    "Masks",
    "Schedule",
    "Target",
    "WeightMask",
    "apply_masks",
    "check_ratio",
    "decoder_layers",
    "depth",
    "fingerprint",
    "full_ratio_reached",
    "keep_mask",
    "load_mask",
    "parse_layers",
    "ratio_at",
    "removed_count",
    "save_mask",
    "select",
]
