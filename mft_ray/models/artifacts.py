"""What a run leaves of its best state, and a backbone with that applied: a mask, a LoRA adapter, or a whole model."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedModel

from mft_ray.errors import UserError
from mft_ray.masking import fingerprint, load_mask
from mft_ray.models.adapter import check_adapter, is_adapter, put_adapter
from mft_ray.models.export import check_empty, generation_config_of, load_masked, replace_folder
from mft_ray.models.hub import local_artifact
from mft_ray.models.loading import in_dtype, load_model, load_tokenizer
from mft_ray.models.names import SCORES, find


def drop_artifact(folder: Path) -> None:
    """Delete the artifact in a run's folder, if there is one, and its scores of single examples."""
    path = find(folder)
    if path is not None:
        (folder / SCORES).unlink(missing_ok=True)  # first: without the artifact nobody would look for them
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def size_of(folder: Path) -> int:
    """Return the bytes of the artifact in a run's folder; 0 if there is none yet."""
    path = find(folder)
    if path is None:
        return 0
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def load_with(
    backbone: str,
    artifact: str | None,
    dtype: str | None = None,
    attention: str | None = None,
    pretrained: str | None = None,
) -> PreTrainedModel:
    """Return a model with a mask or an adapter on it, once it is sure that they belong together.

    Args:
        backbone: folder or hub id.
        artifact: mask file, adapter folder or hub id; None is the backbone itself.
        dtype: dtype of the returned model; None keeps the checkpoint's.
        attention: transformers' attn_implementation.
        pretrained: folder or hub id of the model before fine-tuning, for a mask that removes the delta.

    Raises:
        UserError: they do not belong together.
    """
    if artifact is None:
        return load_model(backbone, dtype, attention)
    artifact = local_artifact(artifact)
    if not is_adapter(artifact):
        return load_masked(backbone, load_mask(artifact), dtype, attention, pretrained)
    model = load_model(backbone, None, attention)
    check_adapter(artifact, backbone, fingerprint(model))
    model = in_dtype(model, backbone, dtype, attention)
    put_adapter(model, artifact)
    return model


def export(backbone: str, artifact: str, folder: Path, pretrained: str | None = None) -> None:
    """Write a backbone with a mask or an adapter made part of its weights, as ``from_pretrained`` loads it.

    Args:
        backbone: folder or hub id of the model that it was learned on.
        artifact: mask file, adapter folder or hub id.
        folder: new or empty.
        pretrained: as described in `load_masked`.

    Raises:
        UserError: the folder is not an empty or new one, or the artifact belongs to another backbone.
    """
    folder = folder.absolute()
    check_empty(folder, "to export to")
    artifact = local_artifact(artifact)
    if is_adapter(artifact):
        model = load_model(backbone)
        check_adapter(artifact, backbone, fingerprint(model))
        model = put_adapter(model, artifact).merge_and_unload()
    else:
        model = load_masked(backbone, load_mask(artifact), pretrained=pretrained)
    tokenizer = load_tokenizer(backbone)
    model.generation_config = generation_config_of(model, tokenizer)

    def write(partial: Path) -> None:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)

    try:
        replace_folder(folder, write)
    except OSError as error:
        raise UserError(
            f"Cannot write the model to {folder}: {error.strerror or error}. Give a folder that can be written."
        ) from None
