"""Mask Fine-Tuning itself: for any `torch.nn.Module` with linear layers, in any training loop."""

from typing import get_args

from mft_ray.masking.file import MaskFile, load_mask, save_mask
from mft_ray.masking.fingerprint import fingerprint
from mft_ray.masking.model import Masks, apply_masks, check_fits
from mft_ray.masking.select import Weight, decoder_layers, depth, maskable, select
from mft_ray.masking.settings import (
    Init,
    MaskSettings,
    Schedule,
    Scope,
    Target,
    check_ratio,
    parse_layers,
    parse_pattern,
)
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
    "Scope",
    "Target",
    "Weight",
    "apply_masks",
    "check_fits",
    "check_ratio",
    "decoder_layers",
    "depth",
    "fingerprint",
    "keep_mask",
    "load_mask",
    "maskable",
    "parse_layers",
    "parse_pattern",
    "removed_count",
    "save_mask",
    "select",
]
