"""A mask on disk: safetensors, one bit per weight, with what it takes to trust it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from math import prod

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mft_ray.errors import UserError
from mft_ray.masking.settings import MaskSettings
from mft_ray.utils.files import replacing
from mft_ray.utils.json_types import JsonObject

_FORMAT = "mft_ray mask 2"
# Format 1 knew fewer settings, whose defaults are what it did.
_READABLE = ("mft_ray mask 1", _FORMAT)


@dataclass(frozen=True)
class MaskFile:
    """The content of a mask file.

    Attributes:
        masks: bool tensors by weight name, True keeps a weight.
        settings: how the mask was learned.
        backbone: fingerprint of the model it was learned on.
        before: with ``removes: delta``, fingerprint of the model before fine-tuning.
        origin: where the backbone is on the hub, as ``owner/name@commit``; empty where it is not, or not known.
        source: the file that it was read from, for messages.
    """

    masks: dict[str, torch.Tensor]
    settings: MaskSettings
    backbone: str
    before: str = ""
    origin: str = ""
    source: str = field(default="", compare=False)

    def __str__(self) -> str:
        """Say how many weights the mask removes, and where that is not what its settings say."""
        removed = sum(int((~mask).sum()) for mask in self.masks.values())
        size = sum(mask.numel() for mask in self.masks.values())
        said = f"{removed:,} of {size:,} weights removed, a ratio of {removed / max(1, size):.4g}"
        claimed = set(self.settings.ratios.values())
        # Rounded down in each matrix.
        lowest = sum(int(min(claimed) * mask.numel()) for mask in self.masks.values())
        if self.settings.rule != "threshold" and not lowest <= removed <= max(claimed) * size:
            claims = " and ".join(f"{ratio:g}" for ratio in sorted(claimed))
            said += f", where its settings say {claims}: it is not what they would make"
        return said


def save_mask(path: str | os.PathLike[str], content: MaskFile) -> None:
    """Write a mask file, whole or not at all."""
    packed = {name: _pack(mask) for name, mask in content.masks.items()}
    metadata = {
        "format": _FORMAT,
        "backbone": content.backbone,
        "before": content.before,
        "settings": json.dumps(asdict(content.settings)),
        "shapes": json.dumps({name: list(mask.shape) for name, mask in content.masks.items()}),
    }
    if content.origin:  # not in every file: readers of before take any key
        metadata["origin"] = content.origin
    metadata["sha256"] = _checksum(packed, metadata)
    with replacing(path) as partial:
        save_file(packed, partial, metadata)


def load_mask(path: str | os.PathLike[str]) -> MaskFile:
    """Read a mask file.

    Raises:
        UserError: there is none, it is not a mask file, or it is truncated or damaged.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"There is no mask file {path}. A search leaves one at RUN/best/mask.safetensors; one on the hub is given "
            "as owner/name."
        )
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            packed = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"The mask file {path} is truncated or damaged ({error}). Copy or export it again.") from None
    if metadata.get("format") not in _READABLE:
        raise UserError(
            f"{path} is a safetensors file but not a mask that this version reads: its format is "
            f"{metadata.get('format')!r}, readable are {', '.join(_READABLE)}."
        )
    try:
        shapes = _shapes(packed, metadata)
        if _checksum(packed, metadata) != metadata.get("sha256"):
            raise UserError("its checksum does not match. Copy it again.")
        masks = {name: _unpack(packed[name], shape) for name, shape in shapes.items()}
        settings, backbone = _settings(metadata), _known(metadata, "backbone")
    except UserError as error:
        raise UserError(f"The mask file {path} is damaged, or not written by mft_ray: {error}") from None
    before, origin = metadata.get("before", ""), metadata.get("origin", "")
    return MaskFile(masks, settings, backbone, before, origin, os.fspath(path))


def _known(metadata: dict[str, str], key: str) -> str:
    if key not in metadata:
        raise UserError(f"its metadata has no {key}.")
    return metadata[key]


def _mapping(metadata: dict[str, str], key: str) -> JsonObject:
    try:
        found = json.loads(_known(metadata, key))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"its metadata's {key} are no JSON mapping.")
    return found


def _shapes(packed: dict[str, torch.Tensor], metadata: dict[str, str]) -> dict[str, list[int]]:
    """Return the shape of each mask, once it is sure that its tensor has a bit for every weight of that."""
    shapes = _mapping(metadata, "shapes")
    if differing := sorted(shapes.keys() ^ packed.keys()):
        raise UserError(f"tensors and shapes are not of the same weights: {', '.join(differing[:3])}.")
    for name, shape in shapes.items():
        sizes = isinstance(shape, list) and all(isinstance(size, int) and size >= 0 for size in shape)
        tensor = packed[name]
        if not sizes:
            raise UserError(f"{name} has the shape {shape}, which is none.")
        if tensor.dtype != torch.uint8 or tensor.dim() != 1:
            raise UserError(f"{name} is a tensor of {tensor.dtype} and shape {list(tensor.shape)}, not packed bits.")
        if tensor.numel() != (wanted := -(-prod(shape) // 8)):
            raise UserError(f"{name} has {tensor.numel():,} bytes of bits, and its shape {shape} needs {wanted:,}.")
    return shapes


def _settings(metadata: dict[str, str]) -> MaskSettings:
    try:
        return TypeAdapter(MaskSettings).validate_python(_mapping(metadata, "settings"))
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        setting = ".".join(str(part) for part in found["loc"])
        raise UserError(f"its setting {setting} is {repr(found['input'])[:40]}: {found['msg']}.") from None


def _pack(mask: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1)))


def _unpack(packed: torch.Tensor, shape: list[int]) -> torch.Tensor:
    bits = np.unpackbits(packed.numpy(), count=prod(shape))
    return torch.from_numpy(bits.astype(bool)).view(shape)


def _checksum(packed: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """Cover the metadata too: a changed shape or setting is as wrong as a changed bit."""
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() - {"sha256"}):
        digest.update(f"{key}={metadata[key]}\n".encode())
    for name in sorted(packed):
        digest.update(name.encode())
        digest.update(packed[name].numpy().data)
    return digest.hexdigest()
