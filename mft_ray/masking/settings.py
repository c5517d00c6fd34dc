"""What a mask is: the settings of the method, and the paper's setting of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from mft_ray.errors import UserError

Target = Literal["attn", "mlp", "both"]
Scope = Literal["matrix", "layer", "model"]
Rule = Literal["ratio", "movement", "threshold"]
Init = Literal["normal", "magnitude", "wanda", "constant", "zero"]
Schedule = Literal["constant", "anneal", "linear"]
Hardness = Literal["hard", "soft"]
Removes = Literal["weight", "delta"]
INITS: tuple[str, ...] = get_args(Init)
SCHEDULES: tuple[str, ...] = get_args(Schedule)
TARGETS: tuple[str, ...] = get_args(Target)


@dataclass(frozen=True)
class MaskSettings:
    """The settings of one mask. The defaults are the paper's preset, but for the layer group.

    Attributes:
        ratio: masking ratio, the fraction of weights REMOVED, 0 <= ratio < 1.
        ratio_attn: masking ratio of the attention half, where it is not ``ratio``.
        ratio_mlp: masking ratio of the MLP half, where it is not ``ratio``.
        layers: layer group, a contiguous inclusive run of decoder layers such as ``4-7``, or ``all``.
        target: which projections: ``attn``, ``mlp`` or ``both``.
        scope: what is ranked together: each ``matrix``, each ``layer``, or the ``model``'s whole layer group.
        rule: what removes a weight: ``ratio``, that it is among the smallest |scores|; ``movement``, that it is
            among the smallest signed scores (movement pruning, arXiv 2005.07683); or ``threshold``, that its signed
            score lies below ``threshold`` (the reference code's other layer; ratio is not used).
        threshold: see ``rule``.
        pattern: ``N:M`` such as 2:4 keeps the N largest of every M weights along the input, as sparse GPU
            kernels want it. The ratio must then be 1 - N/M, and the mask hard.
        init: how scores start: ``normal`` is N(0, init_scale), ``magnitude`` is |W| and ``wanda`` |W| times the
            norm of its input, both scaled to a mean of init_scale, ``constant`` is init_scale everywhere, and
            ``zero`` is 0.
        init_scale: see ``init``.
        schedule: ``constant`` holds the ratio from the first step on; ``anneal`` (cubic) and ``linear`` raise
            it from 0, so that step 0 is the FFT model itself.
        anneal_fraction: the fraction of training after which ``anneal`` and ``linear`` reach the full ratio.
        hardness: ``hard`` masks are 0 or 1 throughout; ``soft`` ones are, while training, a sigmoid of how far
            |score| is from the threshold, and hard whenever the model is evaluated.
        temperature: width of that sigmoid at the start, in units of init_scale; it falls to 0 linearly.
        removes: what a mask switches off: the ``weight``, or the fine-tuning ``delta`` (the weight goes back to
            what it was before fine-tuning).
    """

    # Where a configuration file is read into this class: unknown keys are errors, and the layer group 4 is
    # a number to YAML.
    __pydantic_config__: ClassVar[dict[str, str | bool]] = {
        "extra": "forbid",
        "coerce_numbers_to_str": True,
        "allow_inf_nan": False,
    }

    ratio: float = 0.1
    ratio_attn: float | None = None
    ratio_mlp: float | None = None
    layers: str = "all"
    target: Target = "both"
    scope: Scope = "matrix"
    rule: Rule = "ratio"
    threshold: float = 0.0
    pattern: str | None = None
    init: Init = "normal"
    init_scale: float = 0.02
    schedule: Schedule = "constant"
    anneal_fraction: float = 0.5
    hardness: Hardness = "hard"
    temperature: float = 1.0
    removes: Removes = "weight"

    def __post_init__(self) -> None:
        """Refuse what no mask can be.

        Raises:
            UserError: naming the setting, what was given and what is allowed.
        """
        for ratio in (self.ratio, self.ratio_attn, self.ratio_mlp):
            if ratio is not None:
                check_ratio(ratio)
        if self.layers != "all":
            parse_layers(self.layers)
        for setting, allowed in _CHOICES.items():
            if getattr(self, setting) not in get_args(allowed):
                given, choices = getattr(self, setting), ", ".join(get_args(allowed))
                raise UserError(f"mask {setting} {given!r} is unknown; choose one of {choices}.")
        for setting in ("init_scale", "temperature"):
            if not 0 < getattr(self, setting) < math.inf:  # nor NaN
                raise UserError(f"mask {setting} must be above 0, got {getattr(self, setting)}.")
        if not math.isfinite(self.threshold):
            raise UserError(f"mask threshold must be a number, got {self.threshold}.")
        if not 0 < self.anneal_fraction <= 1:
            raise UserError(f"mask anneal_fraction must be in (0, 1], got {self.anneal_fraction}.")
        if self.rule == "threshold":
            self._check_threshold()
        if self.rule == "movement" and self.hardness == "soft":
            raise UserError(
                "mask rule movement ranks signed scores, and a soft mask is made of |scores|. Use hardness hard, or "
                "rule ratio."
            )
        if self.pattern is not None:
            self._check_pattern(*parse_pattern(self.pattern))

    @property
    def signed(self) -> bool:
        """Whether S itself decides, not |S|: the straight-through gradient then has no sign(S)."""
        return self.rule != "ratio"

    @property
    def ratios(self) -> dict[str | None, float]:
        """The masking ratio of each half, and under None of weights that are in neither."""
        halves = {"attn": self.ratio_attn, "mlp": self.ratio_mlp}
        return {None: self.ratio, **{half: self.ratio if own is None else own for half, own in halves.items()}}

    def _check_threshold(self) -> None:
        given = {
            "schedule": self.schedule != "constant",
            "scope": self.scope != "matrix",
            "pattern": self.pattern is not None,
            "ratio_attn": self.ratio_attn is not None,
            "ratio_mlp": self.ratio_mlp is not None,
            "hardness": self.hardness != "hard",
        }
        if clash := [setting for setting, changed in given.items() if changed]:
            raise UserError(
                f"mask rule threshold has no ratio, so {', '.join(clash)} cannot be set with it; leave it out, or "
                "use rule ratio."
            )

    def _check_pattern(self, kept: int, of: int) -> None:
        if self.hardness == "soft":
            raise UserError(
                f"mask pattern {self.pattern} ranks every {of} weights by themselves, so there is no one threshold for "
                "a soft mask to lie around. Use hardness hard, or leave the pattern out."
            )
        wanted = 1 - kept / of
        if any(abs(ratio - wanted) > 1e-9 for ratio in self.ratios.values()):
            raise UserError(
                f"mask pattern {self.pattern} removes {wanted:g} of all weights, but the ratio is {self.ratio:g}. "
                f"Set ratio {wanted:g}, and no other for attn or mlp."
            )


_CHOICES = {
    "target": Target,
    "scope": Scope,
    "rule": Rule,
    "init": Init,
    "schedule": Schedule,
    "hardness": Hardness,
    "removes": Removes,
}


def check_ratio(ratio: float) -> float:
    """Return the ratio if it is a masking ratio.

    Raises:
        UserError: it is outside [0, 1).
    """
    if not 0 <= ratio < 1:
        raise UserError(
            f"The masking ratio {ratio} is outside [0, 1). It is the fraction of weights REMOVED: "
            "0.1 removes a tenth and keeps 90%."
        )
    return ratio


def parse_layers(group: str) -> range:
    """Read a layer group such as ``4-7`` (inclusive) or ``5``.

    Raises:
        UserError: the text is not of that form.
    """
    found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(group))
    if not found:
        raise UserError(f"The layer group {group!r} is not of the form first-last, such as 4-7, or all.")
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last:
        raise UserError(f"The layer group {group!r} ends before it starts; write the lower layer first.")
    return range(first, last + 1)


def parse_pattern(pattern: str) -> tuple[int, int]:
    """Read a pattern such as ``2:4``: how many are kept, of how many.

    Raises:
        UserError: the text is not of that form.
    """
    found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", str(pattern))
    if not found or not 0 < int(found[1]) < int(found[2]):
        raise UserError(f"The mask pattern {pattern!r} is not of the form N:M with 0 < N < M, such as 2:4.")
    return int(found[1]), int(found[2])
