"""What a mask is: the knobs of the method, and the paper's setting of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from mft_ray.errors import UserError

Target = Literal["attn", "mlp", "both"]
Init = Literal["normal", "magnitude", "constant"]
Schedule = Literal["constant", "anneal"]


@dataclass(frozen=True)
class MaskSettings:
    """The knobs of one mask. The defaults are the paper's preset, but for the layer group.

    Attributes:
        ratio: masking ratio, the fraction of weights REMOVED, 0 <= ratio < 1.
        layers: layer group, a contiguous inclusive run of decoder layers such as ``4-7``, or ``all``.
        target: which projections: ``attn``, ``mlp`` or ``both``.
        init: how scores start: ``normal`` is N(0, init_scale), ``magnitude`` is |W| scaled to a mean of
            init_scale, ``constant`` is init_scale everywhere.
        init_scale: see ``init``.
        schedule: ``constant`` holds the ratio from the first step on; ``anneal`` raises it from 0, so
            that step 0 is the FFT model itself.
        anneal_fraction: the fraction of training after which ``anneal`` reaches the full ratio.
    """

    # Where a configuration file is read into this class: unknown keys are errors, and the layer group 4 is
    # a number to YAML.
    __pydantic_config__: ClassVar[dict[str, str | bool]] = {"extra": "forbid", "coerce_numbers_to_str": True}

    ratio: float = 0.1
    layers: str = "all"
    target: Target = "both"
    init: Init = "normal"
    init_scale: float = 0.02
    schedule: Schedule = "constant"
    anneal_fraction: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what no mask can be.

        Raises:
            UserError: naming the knob, what was given and what is allowed.
        """
        check_ratio(self.ratio)
        if self.layers != "all":
            parse_layers(self.layers)
        for knob, allowed in (("target", Target), ("init", Init), ("schedule", Schedule)):
            if getattr(self, knob) not in get_args(allowed):
                given, choices = getattr(self, knob), ", ".join(get_args(allowed))
                raise UserError(f"mask {knob} {given!r} is unknown; choose one of {choices}.")
        if not self.init_scale > 0:
            raise UserError(f"mask init_scale must be above 0, got {self.init_scale}.")
        if not 0 < self.anneal_fraction <= 1:
            raise UserError(f"mask anneal_fraction must be in (0, 1], got {self.anneal_fraction}.")


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
