"""The files of a model as strangers leave them: what cannot be meant is told before anything is loaded."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mft_ray.errors import UserError
from mft_ray.utils.json_types import JsonObject

CONFIG, ADAPTER = "config.json", "adapter_config.json"
# In the order in which transformers looks for them.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# How safetensors calls numbers that weights are stored as; others are codes of a quantized model.
_FLOATS = {"F64", "F32", "F16", "BF16"}
_BITSANDBYTES = ("load_in_4bit", "load_in_8bit")
_ANSI = re.compile(r"\x1b\[[\d;]*m")
_LFS = b"version https://git-lfs"


def check_files(folder: Path) -> None:
    """Refuse a folder that is not a model's, or not only or not all of a model's, by its files' headers.

    Args:
        folder: that ``model.path`` or a command's option names.

    Raises:
        UserError: saying what the folder holds and what to do.
    """
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if (folder / ADAPTER).is_file():
        _refuse_adapter(folder, weights)
    config = _read_json(folder, folder / CONFIG) if (folder / CONFIG).is_file() else None
    if config is None:
        raise UserError(cannot_load(folder, f"it has no {CONFIG}.{_hint(folder)}"))
    if (method := quantized(config)) is not None:
        raise UserError(_quantized(folder, method))
    if weights is None:
        raise UserError(cannot_load(folder, f"it has {CONFIG} but no weights ({_WEIGHTS[0]}).{_hint(folder)}"))
    for file in _shards(folder, weights):
        with file.open("rb") as opened:
            if opened.read(len(_LFS)) == _LFS:
                why = f"{file.name} is a Git LFS pointer, not the weights: run git lfs pull there."
                raise UserError(cannot_load(folder, why))
        if file.suffix == ".safetensors":
            _check_header(folder, file)
        else:
            _check_pickle(folder, file)


def quantized(config: Any) -> str | None:
    """Return how a model is quantized, None if it is not.

    Args:
        config: transformers' own, or what config.json holds.
    """
    as_dict = config if isinstance(config, dict) else config.to_dict()
    for part in (as_dict, as_dict.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            found = part.get(key) if isinstance(part, dict) else None
            if found:
                found = found if isinstance(found, dict) else {}
                bits = next((name.removeprefix("load_in_") for name in _BITSANDBYTES if found.get(name)), None)
                return str(found.get("quant_method") or (f"bitsandbytes, {bits}" if bits else "by an unknown method"))
    return None


def check_unquantized(path: str | Path, config: Any) -> None:
    """Refuse a quantized model.

    Args:
        path: folder or hub id.
        config: transformers' own.

    Raises:
        UserError: with what to give instead.
    """
    if (method := quantized(config)) is not None:
        raise UserError(_quantized(path, method))


def check_numbers(folder: Path) -> None:
    """Read every weight of a folder once, one at a time, and refuse NaN and infinite ones.

    Raises:
        UserError: naming the tensors.
    """
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    files = _shards(folder, weights) if weights is not None else []
    stamps = [file.stat() for file in files]
    if broken := _broken(tuple(files), tuple((stamp.st_size, stamp.st_mtime_ns) for stamp in stamps)):
        raise UserError(not_finite(folder, broken))


@lru_cache(maxsize=8)
def _broken(files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> list[str]:
    """Return the names of tensors that hold other than numbers; rows of a comparison share one reading of a model."""
    return [name for file in files for name, tensor in _tensors(file) if not finite(tensor)]


def not_finite(path: str | Path, names: Sequence[str]) -> str:
    """Return what to tell of weights that are not numbers."""
    return cannot_load(
        path,
        f"{some(names)} of its tensors hold NaN or infinite numbers. Its training diverged, or its file is damaged; "
        "give an earlier checkpoint, or copy it again.",
    )


def finite(tensor: torch.Tensor) -> bool:
    """Say whether all numbers of a tensor are finite, without a copy of it."""
    if tensor.numel() == 0 or not tensor.is_floating_point() or tensor.is_meta:
        return True
    least, most = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(least) and torch.isfinite(most))


def some(names: Iterable[str]) -> str:
    """Return how many there are, and the first few by name."""
    listed = sorted(names)
    more = ", …" if len(listed) > 3 else ""
    return f"{len(listed):,} ({', '.join(listed[:3])}{more})"


def cannot_load(path: str | Path, why: str) -> str:
    """Return the beginning of every message about a model that cannot be loaded, and why."""
    return f"Cannot load a model from {path}: {why}"


def reason(error: BaseException) -> str:
    """Return what an error of a library says, in one line that ends."""
    lines = [line.strip() for line in _ANSI.sub("", str(error)).splitlines() if line.strip()]
    # transformers' validation says what is wrong with a field on the line after its name.
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]) or type(error).__name__
    text = text if len(text) <= 300 else f"{text[:300]}…"
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def _refuse_adapter(folder: Path, weights: Path | None) -> None:
    if weights is None:
        base = _read_json(folder, folder / ADAPTER).get("base_model_name_or_path") or "ITS_MODEL"
        raise UserError(
            f"{folder} holds an adapter, not a model. Make it part of the model that it was trained on, and give the "
            f"folder that this writes: mft-ray export --backbone {base} --adapter {folder} --out FOLDER"
            "."
        )
    raise UserError(
        f"{folder} holds a model and an adapter ({ADAPTER}), which transformers would put on the model unasked: its "
        "weights would be others than these. Move the adapter's files to a folder of their own; to have it in the "
        "weights, then: mft-ray export --backbone MODEL --adapter ADAPTER --out FOLDER."
    )


def _quantized(path: str | Path, method: str) -> str:
    return cannot_load(
        path,
        f"it is quantized ({method}): its weights are packed codes, of which none can be masked or trained exactly. "
        "Give the checkpoint that it was made from, or de-quantize it: AutoModelForCausalLM.from_pretrained(MODEL)"
        ".dequantize().save_pretrained(FOLDER), where transformers has the method's library.",
    )


def _hint(folder: Path) -> str:
    """Say what a folder without a model in it seems to hold."""
    names = sorted(path.name for path in folder.iterdir())
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return (
            f" It has {gguf[0]}, of llama.cpp: make an ordinary folder of it by AutoModelForCausalLM.from_pretrained("
            f"FOLDER, gguf_file='{gguf[0]}').save_pretrained(NEW), or give the checkpoint that it was made from."
        )
    if any(name.startswith("consolidated.") for name in names):
        return " It is in its maker's own format (consolidated.*): give the Hugging Face folder of the same model."
    inner = [name for name in names if (folder / name / CONFIG).is_file()]
    if inner:
        return f" The folder {inner[-1]} within it has one: give {folder / inner[-1]}."
    if "zero_to_fp32.py" in names or any(name.endswith(".distcp") for name in names):
        return " It is a training checkpoint in pieces: put them together first (DeepSpeed's zero_to_fp32.py)."
    held = f"It holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "It is empty"
    return f" {held}; give a folder that save_pretrained wrote."


def _read_json(folder: Path, file: Path) -> JsonObject:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(cannot_load(folder, f"{file.name} cannot be read: {reason(error)}")) from None
    if not isinstance(found, dict):
        raise UserError(cannot_load(folder, f"{file.name} holds no settings but {str(found)[:40]!r}."))
    return found


def _shards(folder: Path, weights: Path) -> list[Path]:
    """Return the files of a model's weights, once it is sure that all are there."""
    if weights.suffix != ".json":
        return [weights]
    index = _read_json(folder, weights).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise UserError(cannot_load(folder, f"{weights.name} does not say which weights are in which file."))
    names = sorted(set(index.values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            cannot_load(folder, f"it lacks {some(missing)} of the {len(names)} files that {weights.name} names.")
        )
    return [folder / name for name in names]


def _check_header(folder: Path, file: Path) -> None:
    try:
        with safe_open(file, framework="pt") as opened:
            stored = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            cannot_load(folder, f"{file.name} is truncated or damaged ({reason(error)[:-1]}). Copy it again.")
        ) from None
    if codes := {name: dtype for name, dtype in stored.items() if name.endswith("weight") and dtype not in _FLOATS}:
        raise UserError(_quantized(folder, f"{file.name} stores {next(iter(codes))} as {next(iter(codes.values()))}"))


def _check_pickle(folder: Path, file: Path) -> None:
    """Refuse a pickle that is not only tensors: reading one runs what is in it, unless torch is told not to."""
    try:
        found = torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # a pickle can fail in any way
        why = "holds more than weights" if isinstance(error, pickle.UnpicklingError) else "is truncated or damaged"
        raise UserError(
            cannot_load(
                folder, f"{file.name} {why}, and is not read. Give model.safetensors, as save_pretrained writes it."
            )
        ) from None
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise UserError(
            cannot_load(folder, f"{file.name} holds other things than weights by name, such as a trainer's state.")
        )


def stored_shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor in a folder's safetensors files."""
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    shapes: dict[str, list[int]] = {}
    for file in _shards(folder, weights) if weights is not None else []:
        with safe_open(file, framework="pt") as opened:
            shapes |= {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes


def _tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)
        return
    yield from torch.load(file, map_location="cpu", weights_only=True).items()
