"""What a mask has removed, and where; how alike several masks are, and each is to plain pruning by magnitude."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import combinations

import torch
from torch import Tensor

from mft_ray.errors import UserError
from mft_ray.masking import MaskFile, check_fits, fingerprint, load_mask
from mft_ray.masking.topk import keep_largest
from mft_ray.models.export import check_fingerprint
from mft_ray.models.hub import local_artifact
from mft_ray.models.loading import load_model
from mft_ray.utils.json_types import JsonObject

_LAYER = re.compile(r"\.(\d+)\.")
_GROUP, _KEPT = 4, 2  # 2:4, which GPUs since Ampere compute faster


@dataclass(frozen=True)
class Part:
    """What is removed of some matrices of one mask.

    Attributes:
        weights: how many there are.
        removed: how many are removed.
        rows: output features that are removed whole.
        of_rows: output features.
        columns: input features that are removed whole.
        of_columns: input features.
        fitting: groups of 4 inputs of which no more than 2 are kept, as 2:4 has them.
        of_groups: groups of 4 inputs.
        entropy: of each row's ratio, in nats, times the row's weights; of all rows.
    """

    weights: int = 0
    removed: int = 0
    rows: int = 0
    of_rows: int = 0
    columns: int = 0
    of_columns: int = 0
    fitting: int = 0
    of_groups: int = 0
    entropy: float = 0.0

    @classmethod
    def of(cls, kept: Tensor) -> Part:
        """Count a matrix, True where a weight is kept; of stacked experts each matrix is one."""
        matrices = kept.reshape(-1, *kept.shape[-2:]) if kept.dim() > 1 else kept[None, None]
        return sum((cls._of_matrix(matrix) for matrix in matrices), start=cls())

    @classmethod
    def _of_matrix(cls, kept: Tensor) -> Part:
        groups = kept[:, : kept.shape[1] // _GROUP * _GROUP].reshape(-1, _GROUP)
        return cls(
            weights=kept.numel(),
            removed=int((~kept).sum()),
            rows=int((~kept.any(dim=1)).sum()),
            of_rows=kept.shape[0],
            columns=int((~kept.any(dim=0)).sum()),
            of_columns=kept.shape[1],
            fitting=int((groups.sum(dim=1) <= _KEPT).sum()),
            of_groups=len(groups),
            entropy=float(_entropy((~kept).float().mean(dim=1)).sum()) * kept.shape[1],
        )

    def __add__(self, other: Part) -> Part:
        """Count both."""
        return Part(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def ratio(self) -> float:
        """Part of the weights that is removed."""
        return self.removed / max(1, self.weights)

    @property
    def evenness(self) -> float:
        """Entropy of the rows' ratios over that of the ratio: 1 where all lose alike, 0 where rows go whole."""
        most = float(_entropy(torch.tensor(self.ratio))) * self.weights
        return self.entropy / most if most else 0.0

    def as_json(self) -> JsonObject:
        """Return the numbers by name."""
        return {**asdict(self), "ratio": self.ratio, "evenness": self.evenness}


@dataclass(frozen=True)
class Overlap:
    """How alike two choices of weights to remove are, in the matrices that both masks have.

    Attributes:
        first: name of a mask.
        second: name of another, or ``smallest weights``.
        jaccard: weights that both remove over weights that either does.
        chance: what two choices at random of these sizes would have.
        layers: the first by layer.
    """

    first: str
    second: str
    jaccard: float
    chance: float
    layers: dict[str, float]


@dataclass(frozen=True)
class Inspection:
    """What is found in some masks.

    Attributes:
        masks: by name what each is.
        layers: by name of the mask, what each layer loses.
        modules: by name of the mask, what each kind of module loses.
        wholes: by name of the mask, what is lost in all.
        overlaps: of every two masks, and of each with the smallest weights if the backbone was given.
    """

    masks: dict[str, MaskFile]
    layers: dict[str, dict[str, Part]]
    modules: dict[str, dict[str, Part]]
    wholes: dict[str, Part]
    overlaps: list[Overlap]

    def as_json(self) -> JsonObject:
        """Return all of it as JSON has it."""
        return {
            "masks": {
                name: {
                    "settings": asdict(mask.settings),
                    "backbone": mask.backbone,
                    "all": self.wholes[name].as_json(),
                    "layers": {layer: part.as_json() for layer, part in self.layers[name].items()},
                    "modules": {module: part.as_json() for module, part in self.modules[name].items()},
                }
                for name, mask in self.masks.items()
            },
            "overlaps": [asdict(overlap) for overlap in self.overlaps],
        }


def inspect(paths: Sequence[str], backbone: str | None = None) -> Inspection:
    """Look into mask files.

    Args:
        paths: mask files, or their hub ids.
        backbone: folder or hub id of the model that they were learned on, to compare them with its smallest weights.

    Raises:
        UserError: a file is no mask, the backbone is another, or two files are the same.
    """
    if len(set(paths)) < len(paths):
        raise UserError("A mask is given twice. Give each once.")
    masks = {path: load_mask(local_artifact(path)) for path in paths}
    removed = {name: {key: ~mask for key, mask in found.masks.items()} for name, found in masks.items()}
    overlaps = [_overlap(one, removed[one], other, removed[other]) for one, other in combinations(masks, 2)]
    if backbone is not None:
        overlaps += _against_smallest(masks, removed, backbone)
    parts = {name: {key: Part.of(mask) for key, mask in found.masks.items()} for name, found in masks.items()}
    return Inspection(
        masks,
        {name: _grouped(each, layer_of) for name, each in parts.items()},
        {name: _grouped(each, module_of) for name, each in parts.items()},
        {name: sum(each.values(), start=Part()) for name, each in parts.items()},
        overlaps,
    )


def layer_of(weight: str) -> str:
    """Return the number of a weight's layer, as text; its name where it is in none."""
    found = _LAYER.search(weight)
    return found[1] if found else weight


def module_of(weight: str) -> str:
    """Return what a weight is called in its layer, such as ``mlp.up_proj``."""
    found = _LAYER.search(weight)
    inside = weight[found.end() :] if found else weight
    return inside.removesuffix(".weight")


def _grouped(parts: Mapping[str, Part], by: Callable[[str], str]) -> dict[str, Part]:
    found: defaultdict[str, Part] = defaultdict(Part)
    for name, part in parts.items():
        found[by(name)] += part
    return {name: found[name] for name in sorted(found, key=_by_number)}


def _against_smallest(
    masks: Mapping[str, MaskFile], removed: Mapping[str, Mapping[str, Tensor]], backbone: str
) -> list[Overlap]:
    model, found = load_model(backbone), []
    own = fingerprint(model)
    for name, mask in masks.items():
        check_fingerprint("backbone", backbone, own, mask.backbone)
        check_fits(model, mask.masks, None, name)
        smallest = {
            key: ~keep_largest([model.get_parameter(key).detach().abs()], int(gone.sum()))[0]
            for key, gone in removed[name].items()
        }
        found.append(_overlap(name, removed[name], "smallest weights", smallest))
    return found


def _overlap(one: str, first: Mapping[str, Tensor], other: str, second: Mapping[str, Tensor]) -> Overlap:
    counts: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])  # both, either, both by chance
    for key in first.keys() & second.keys():
        a, b = first[key], second[key]
        if a.shape != b.shape:
            shapes = f"{key} is {tuple(a.shape)} and {tuple(b.shape)}"
            raise UserError(f"{one} and {other} are of different models: {shapes}.")
        at_once = float((a & b).sum()), float((a | b).sum()), float(a.sum()) * float(b.sum()) / a.numel()
        counts[layer_of(key)] = [x + y for x, y in zip(counts[layer_of(key)], at_once, strict=True)]
    both, either, expected = (sum(each[place] for each in counts.values()) for place in range(3))
    sizes = both + either
    return Overlap(
        one,
        other,
        both / either if either else 0.0,
        expected / (sizes - expected) if sizes > expected else 0.0,
        {layer: counts[layer][0] / max(1.0, counts[layer][1]) for layer in sorted(counts, key=_by_number)},
    )


def _by_number(layer: str) -> tuple[bool, int, str]:
    return (not layer.isdecimal(), int(layer) if layer.isdecimal() else 0, layer)


def _entropy(rates: Tensor) -> Tensor:
    found: Tensor = torch.special.entr(rates) + torch.special.entr(1 - rates)
    return found
