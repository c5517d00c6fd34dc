from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_ray.masking import MaskSettings, Weight
from mft_ray.masking.ranking import make_masks, ranked_together
from mft_ray.masking.settings import Scope

# Two layers of three halves each, one weight that no layer holds, one that is empty.
WEIGHTS = [
    Weight("0.attn", 0, "attn", 1),
    Weight("0.mlp", 0, "mlp", 0),
    Weight("0.mixer", 0, None, 1),
    Weight("1.attn", 1, "attn", 1),
    Weight("1.empty", 1, "mlp", 1),
    Weight("1.experts", 1, "mlp", 2),
    Weight("head", None, None, 1),
]
SHAPES = [(4, 12), (12, 2), (3, 12), (1, 12), (0, 12), (2, 3, 12), (12, 12)]
shares = st.sampled_from([0.0, 0.3, 0.875, 1.0])


@st.composite
def scores(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Rounded, so that there are ties within and between weights; infinities now and then."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    made = {}
    for weight, shape in zip(WEIGHTS, SHAPES, strict=True):
        values = torch.randn(shape, generator=generator)
        values = values.round(decimals=draw(st.integers(0, 1)))
        if draw(st.booleans()):
            values[values > 1] = math.inf
        made[weight.name] = values
    return made


def masks_of(scores: Mapping[str, torch.Tensor], settings: MaskSettings, share: float) -> dict[str, torch.Tensor]:
    masks = {}
    for group in ranked_together(WEIGHTS, settings):
        made = make_masks(group, scores, settings, share)
        masks |= {weight.name: mask for weight, mask in zip(group, made, strict=True)}
    return masks


Entry = tuple[float, int, tuple[int, ...]]


def entries(scores: Mapping[str, torch.Tensor], rank: int) -> list[Entry]:
    """Everything that ranking looks at, of one weight: |S|, which weight, where in it."""
    values = scores[WEIGHTS[rank].name]
    places = itertools.product(*map(range, values.shape))
    return [(abs(float(values[place])), rank, place) for place in places]


def keep_all_but(removed: list[Entry], scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    masks = {name: torch.ones_like(values, dtype=torch.bool) for name, values in scores.items()}
    for _, rank, place in removed:
        masks[WEIGHTS[rank].name][place] = False
    return masks


def slow_masks(scores: Mapping[str, torch.Tensor], settings: MaskSettings, share: float) -> dict[str, torch.Tensor]:
    """Sort all that is ranked together, remove the first ones."""
    groups: dict[object, list[int]] = {}
    for rank, weight in enumerate(WEIGHTS):
        scope = {"matrix": rank, "layer": weight.layer, "model": 0}[settings.scope]
        groups.setdefault((scope, settings.ratios[weight.half]), []).append(rank)
    removed: list[Entry] = []
    for (_, ratio), ranks in groups.items():  # type: ignore[misc]
        ranked = sorted(entry for rank in ranks for entry in entries(scores, rank))
        removed += ranked[: math.floor(Fraction(repr(ratio * share)) * len(ranked))]
    return keep_all_but(removed, scores)


def slow_pattern(
    scores: Mapping[str, torch.Tensor], kept: int, of: int, scope: str, share: float
) -> dict[str, torch.Tensor]:
    """Of every run of M along the input the first M - N in order lose; of these a share is removed."""
    losers: dict[object, list[Entry]] = {}
    for rank, weight in enumerate(WEIGHTS):
        runs: dict[object, list[Entry]] = {}
        for entry in entries(scores, rank):
            place = list(entry[2])
            place[weight.input_dim] //= of
            runs.setdefault(tuple(place), []).append(entry)
        whole = {"matrix": rank, "layer": weight.layer, "model": 0}[scope]
        losers.setdefault(whole, []).extend(entry for run in runs.values() for entry in sorted(run)[: of - kept])
    return keep_all_but(
        [entry for lost in losers.values() for entry in sorted(lost)[: math.floor(Fraction(repr(share)) * len(lost))]],
        scores,
    )


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, mask in found.items():
        assert mask.dtype == torch.bool
        assert mask.tolist() == expected[name].tolist(), name


@given(
    scores(),
    st.sampled_from(["matrix", "layer", "model"]),
    st.sampled_from([None, 0.0, 0.5]),
    st.sampled_from([None, 0.29, 0.999]),
    shares,
)
@settings(deadline=None)
def test_every_scope_agrees_with_sorting(
    scores: dict[str, torch.Tensor], scope: str, ratio_attn: float | None, ratio_mlp: float | None, share: float
) -> None:
    chosen = MaskSettings(ratio=0.3, ratio_attn=ratio_attn, ratio_mlp=ratio_mlp, scope=scope)  # type: ignore[arg-type]
    assert_equal(masks_of(scores, chosen, share), slow_masks(scores, chosen, share))


@given(
    scores(), st.sampled_from([(2, 4), (1, 4), (1, 3), (2, 3), (1, 2), (11, 12)]), st.sampled_from(["matrix", "model"])
)
@settings(deadline=None)
def test_a_pattern_keeps_exactly_n_of_m_along_the_input(
    scores: dict[str, torch.Tensor], pattern: tuple[int, int], scope: str
) -> None:
    kept, of = pattern
    chosen = MaskSettings(ratio=1 - kept / of, pattern=f"{kept}:{of}", scope=scope)  # type: ignore[arg-type]
    masks = masks_of(scores, chosen, 1.0)
    for weight in WEIGHTS:
        rows = masks[weight.name].movedim(weight.input_dim, -1)
        assert (rows.reshape(-1, of).sum(dim=-1) == kept).all()
    assert_equal(masks, slow_pattern(scores, kept, of, scope, 1.0))


@given(scores(), st.sampled_from([(2, 4), (1, 3)]), st.sampled_from(["matrix", "layer", "model"]), shares)
@settings(deadline=None)
def test_an_annealed_pattern_removes_the_smallest_of_those_that_lose(
    scores: dict[str, torch.Tensor], pattern: tuple[int, int], scope: str, share: float
) -> None:
    kept, of = pattern
    chosen = MaskSettings(ratio=1 - kept / of, pattern=f"{kept}:{of}", scope=scope)  # type: ignore[arg-type]
    assert_equal(masks_of(scores, chosen, share), slow_pattern(scores, kept, of, scope, share))


@pytest.mark.parametrize("ratio", [2 / 3, 0.6666666666, 0.6666666667, 1 - 1 / 3])
def test_a_pattern_is_full_however_its_ratio_is_rounded(ratio: float) -> None:
    # floor(2/3 * 12) is 7 as a computer sees it: one group of three would keep two.
    weight = Weight("w", None, None, 1)
    chosen = MaskSettings(ratio=ratio, pattern="1:3")
    (mask,) = make_masks([weight], {"w": torch.arange(12.0).view(1, 12)}, chosen)
    assert mask.tolist() == [[False, False, True] * 4]


def test_ties_in_a_pattern_go_to_the_lower_index() -> None:
    chosen = MaskSettings(ratio=0.5, pattern="2:4")
    (mask,) = make_masks([Weight("w", None, None, 1)], {"w": torch.tensor([[1.0, -1, 1, 1, 0, 2, 2, 2]])}, chosen)
    assert mask.tolist() == [[False, False, True, True, False, False, True, True]]


@given(scores(), st.sampled_from([-0.5, 0.0, 0.3]))
@settings(deadline=None)
def test_a_threshold_looks_at_the_signed_score(scores: dict[str, torch.Tensor], threshold: float) -> None:
    chosen = MaskSettings(rule="threshold", threshold=threshold)
    for name, mask in masks_of(scores, chosen, 1.0).items():
        assert mask.flatten().tolist() == [score >= threshold for score in scores[name].flatten().tolist()]


def test_a_score_at_the_threshold_is_kept_and_minus_zero_is_zero() -> None:
    chosen = MaskSettings(rule="threshold")
    (mask,) = make_masks([Weight("w", None, None, 1)], {"w": torch.tensor([0.0, -0.0, -1e-45, 1e-45])}, chosen)
    assert mask.tolist() == [True, True, False, True]


@given(scores(), st.sampled_from(["matrix", "layer", "model"]))
@settings(deadline=None)
def test_movement_removes_the_smallest_signed_scores(scores: dict[str, torch.Tensor], scope: Scope) -> None:
    moved = masks_of(scores, MaskSettings(0.3, rule="movement", scope=scope), 1.0)
    lowest = min(float(score.min()) for score in scores.values() if score.numel())
    lifted = {name: score - lowest for name, score in scores.items()}  # the same order, and none is below zero
    for name, mask in masks_of(lifted, MaskSettings(0.3, scope=scope), 1.0).items():
        assert mask.equal(moved[name])


def test_a_pattern_of_movement_keeps_the_largest_signed() -> None:
    chosen = MaskSettings(ratio=0.5, pattern="1:2", rule="movement")
    (mask,) = make_masks([Weight("w", None, None, 1)], {"w": torch.tensor([[-3.0, 1.0, -0.5, -2.0]])}, chosen)
    assert mask.tolist() == [[False, True, True, False]]


@pytest.mark.parametrize(
    "chosen",
    [MaskSettings(), MaskSettings(rule="movement"), MaskSettings(rule="threshold"), MaskSettings(0.5, pattern="1:2")],
)
def test_nan_scores_are_refused_by_every_rule(chosen: MaskSettings) -> None:
    scores = {"w": torch.full((4, 12), math.nan)}
    with pytest.raises(FloatingPointError, match=r"NaN.*learning rate"):
        make_masks([Weight("w", None, None, 1)], scores, chosen)


def test_halves_of_one_ratio_are_ranked_together_and_others_apart() -> None:
    def names(chosen: MaskSettings) -> list[list[str]]:
        return [[weight.name for weight in group] for group in ranked_together(WEIGHTS, chosen)]

    everything = [weight.name for weight in WEIGHTS]
    assert names(MaskSettings(scope="matrix")) == [[name] for name in everything]
    assert names(MaskSettings(scope="model")) == [everything]
    assert names(MaskSettings(scope="model", ratio=0.2, ratio_attn=0.2)) == [everything]
    assert names(MaskSettings(scope="layer")) == [everything[:3], everything[3:6], ["head"]]
    apart = [["0.attn", "1.attn"], ["0.mlp", "1.empty", "1.experts"], ["0.mixer", "head"]]
    assert names(MaskSettings(0.1, ratio_attn=0.2, ratio_mlp=0.3, scope="model")) == apart
