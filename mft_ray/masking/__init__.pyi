from .file import MaskFile, load_mask, save_mask
from .identity import fingerprint
from .model import Masks, apply_masks, check_fits
from .selection import Weight, decoder_layers, depth, maskable, select
from .settings import (
    INITS,
    SCHEDULES,
    TARGETS,
    Init,
    MaskSettings,
    Schedule,
    Scope,
    Target,
    check_ratio,
    parse_layers,
    parse_pattern,
)
from .topk import keep_mask, removed_count

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
