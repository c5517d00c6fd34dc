"""What must hold of every mask, whatever the settings say."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pytest
import torch
from tiny_models import TOKENS, bits, copies, fine_tuned, llama, logits_of, same, train
from torch import nn

from mft_ray.masking import (
    MaskFile,
    Masks,
    MaskSettings,
    apply_masks,
    depth,
    fingerprint,
    load_mask,
    removed_count,
    save_mask,
)
from mft_ray.masking.settings import _CHOICES

TWO_OF_FOUR = {"ratio": 0.5, "pattern": "2:4"}
SETTINGS: list[MaskSettings] = [
    MaskSettings(),
    MaskSettings(ratio=0.0),
    MaskSettings(ratio=0.99),
    MaskSettings(0.3, layers="0"),
    MaskSettings(0.3, layers="0-1", target="attn"),
    MaskSettings(0.3, target="mlp"),
    MaskSettings(0.3, target="both", ratio_attn=0.1, ratio_mlp=0.6),
    MaskSettings(0.3, scope="layer"),
    MaskSettings(0.3, scope="layer", ratio_mlp=0.6, init="magnitude"),
    MaskSettings(0.3, scope="model", init="wanda", init_scale=0.1),
    MaskSettings(0.3, scope="model", ratio_attn=0.0, schedule="linear"),
    MaskSettings(0.3, init="constant"),
    MaskSettings(0.3, init="magnitude", schedule="anneal"),
    MaskSettings(0.3, init="wanda", schedule="anneal", anneal_fraction=1.0),
    MaskSettings(0.3, schedule="linear", anneal_fraction=0.1),
    MaskSettings(0.3, hardness="soft"),
    MaskSettings(0.3, hardness="soft", temperature=0.1, schedule="anneal", scope="model"),
    MaskSettings(0.3, hardness="soft", removes="delta", schedule="linear"),
    MaskSettings(0.3, removes="delta"),
    MaskSettings(0.3, removes="delta", init="magnitude", schedule="anneal"),
    MaskSettings(0.3, removes="delta", init="wanda"),
    MaskSettings(0.3, rule="movement", init="zero", schedule="anneal"),
    MaskSettings(0.3, rule="movement", scope="model"),
    MaskSettings(rule="threshold", threshold=-0.01),
    MaskSettings(rule="threshold", init="magnitude", threshold=0.01, removes="delta"),
    MaskSettings(**TWO_OF_FOUR),  # type: ignore[arg-type]
    MaskSettings(**TWO_OF_FOUR, schedule="anneal", init="magnitude", scope="layer"),  # type: ignore[arg-type]
    MaskSettings(0.25, pattern="3:4", schedule="linear", removes="delta"),
]


def short(chosen: MaskSettings) -> str:
    defaults = asdict(MaskSettings())
    return " ".join(f"{name}={value}" for name, value in asdict(chosen).items() if value != defaults[name]) or "paper"


@pytest.fixture(params=SETTINGS, ids=short)
def settings(request: pytest.FixtureRequest) -> MaskSettings:
    chosen: MaskSettings = request.param
    return chosen


@pytest.fixture(params=[True, False, torch.bfloat16], ids=lambda cache: f"cache {cache}")
def cache(request: pytest.FixtureRequest) -> bool | torch.dtype:
    chosen: bool | torch.dtype = request.param
    return chosen


def backbone() -> nn.Module:
    return fine_tuned(before)


def before() -> nn.Module:
    """The model before fine-tuning."""
    return llama(layers=2)


BEFORE = dict(before().named_parameters())


def autocast(cache: bool | torch.dtype) -> AbstractContextManager[None]:
    # A copy in bfloat16 is for autocast, which would make one in every forward.
    device = torch.get_default_device().type
    context: AbstractContextManager[None] = torch.autocast(device, torch.bfloat16, enabled=cache is torch.bfloat16)
    return context


def masks_on(model: nn.Module, settings: MaskSettings, cache: bool | torch.dtype, seed: int = 0) -> Masks:
    return Masks(model, settings, seed=seed, before=BEFORE, calibrate=lambda: model(TOKENS), cache=cache)


def wanted_counts(masks: Masks) -> dict[object, list[int]]:
    """By what is ranked together: removed, and how many should be."""
    counts: dict[object, list[int]] = {}
    sizes: dict[object, tuple[int, float]] = {}
    for weight, mask in zip(masks.weights, masks.masks().values(), strict=True):
        half = "attn" if "self_attn" in weight.name else "mlp"
        own = getattr(masks.settings, f"ratio_{half}")
        ratio = masks.settings.ratio if own is None else own
        layer = weight.name.split(".")[2]
        key = {"matrix": weight.name, "layer": (layer, ratio), "model": ratio}[masks.settings.scope]
        sizes[key] = (sizes.get(key, (0, ratio))[0] + mask.numel(), ratio)
        counts.setdefault(key, [0, 0])[0] += int((~mask).sum())
    for key, (size, ratio) in sizes.items():
        counts[key][1] = removed_count(size, ratio)
    return counts


def test_the_list_has_every_value_of_every_setting() -> None:
    allowed = {**_CHOICES, "layers": None, "pattern": None, "ratio_attn": None, "ratio_mlp": None}
    for setting in asdict(MaskSettings()):
        given = {getattr(each, setting) for each in SETTINGS}
        assert given >= set(get_args(allowed.get(setting))), setting
        assert len(given) > 1, setting


def test_every_mask_keeps_its_promises(settings: MaskSettings, cache: bool | torch.dtype, tmp_path: Path) -> None:
    with autocast(cache):
        plain = logits_of(backbone())
        masks = masks_on(backbone(), settings, cache)
        if settings.schedule != "constant":
            for mode in (True, False):
                assert torch.equal(logits_of(masks.model.train(mode)), plain), "step 0 is the FFT model"

        train(masks, steps=4)
        learned, logits = copies(masks.masks()), logits_of(masks.model)
        assert masks.at_full_ratio
        if settings.rule == "ratio":
            for removed, wanted in wanted_counts(masks).values():
                assert removed == wanted

        again = masks_on(backbone(), settings, cache)
        train(again, steps=4)
        assert same(again.masks(), learned), "the same seed gives the same masks"

        path = tmp_path / "mask.safetensors"
        save_mask(path, MaskFile(learned, settings, fingerprint(backbone()), fingerprint(before())))
        loaded = load_mask(path)
        assert loaded.settings == settings
        assert same(loaded.masks, learned)
        applied = apply_masks(backbone(), loaded.masks, BEFORE if settings.removes == "delta" else None)
        assert torch.equal(logits_of(applied), logits)

        assert bits(masks.merge()) == bits(applied)
        assert torch.equal(logits_of(masks.model), logits)
        masks.unmerge()
        assert same(masks.masks(), learned)
        assert torch.equal(logits_of(masks.model), logits)
        assert bits(masks.unload()) == bits(backbone()), "the backbone never changes"
        assert torch.equal(logits_of(masks.model), plain)
        assert depth(masks.model) == 2


def test_training_moves_every_score(settings: MaskSettings) -> None:
    masks = masks_on(backbone(), settings, cache=True)
    first = [score.detach().clone() for score in masks.scores()]
    train(masks, steps=2)
    assert not any(torch.equal(*pair) for pair in zip(masks.scores(), first, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_backbones_have_fp32_scores(dtype: torch.dtype, settings: MaskSettings) -> None:
    masks = masks_on(backbone().to(dtype), settings, cache=True)
    assert all(score.dtype == torch.float32 for score in masks.scores())
    train(masks, steps=2)
    logits = logits_of(masks.model)
    assert logits.dtype == dtype
    applied = apply_masks(backbone().to(dtype), masks.masks(), BEFORE if settings.removes == "delta" else None)
    assert torch.equal(logits_of(applied), logits)
    assert bits(masks.unload()) == bits(backbone().to(dtype))
