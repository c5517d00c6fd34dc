"""The folder of a repository, just as it is uploaded."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from mft_ray.masking import fingerprint, save_mask
from mft_ray.models.artifacts import export
from mft_ray.models.export import check_fingerprint
from mft_ray.models.hub import split_revision
from mft_ray.models.loading import load_model
from mft_ray.models.names import MASK
from mft_ray.publishing.card import backbone_card, card
from mft_ray.publishing.publication import Publication
from mft_ray.utils.console import log_warning
from mft_ray.utils.files import write_json, write_text

# What from_pretrained reads, and a licence. Optimizer states, logs and whatever else lies in a folder stay there.
_OF_A_MODEL = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.jinja",
    "*.model",
    "LICENSE*",
    "NOTICE*",
)


def stage(what: Publication, folder: Path, licence: dict[str, str]) -> None:
    """Write what goes into the repository.

    Args:
        what: what is published.
        folder: new folder.
        licence: the backbone's, for the card.

    Raises:
        UserError: a model cannot be made of it.
    """
    artifact = what.found.artifact
    if what.kind == "mask":
        assert what.mask is not None
        folder.mkdir(parents=True)
        save_mask(folder / MASK, replace(what.mask, origin=what.origin))
    elif what.kind == "adapter":
        shutil.copytree(artifact, folder)
        _name_backbone(folder, what.origin)
    elif what.made == "model":
        _copy_model(artifact, folder)
    else:
        export(what.fft.model, str(artifact), folder, what.found.pretrained)
    write_text(folder / "README.md", str(card(what, licence)))


def stage_backbone(what: Publication, folder: Path, licence: dict[str, str]) -> None:
    """Write the FFT model's repository.

    Args:
        what: what is published; the model is in a folder here.
        folder: new folder.
        licence: the licence of the model that FFT started from, for the card.

    Raises:
        UserError: it is not the model any more that the mask was learned on.
    """
    found = fingerprint(load_model(what.fft.model))
    check_fingerprint("backbone", what.fft.model, found, what.fft.fingerprint, what=what.kind)
    _copy_model(Path(what.fft.model), folder)
    write_text(folder / "README.md", str(backbone_card(what, licence)))


def _copy_model(source: Path, folder: Path) -> None:
    """Copy a model's files without a second copy on the disk where that can be."""
    folder.mkdir(parents=True)
    left_out = []
    for path in sorted(source.iterdir()):
        if path.is_file() and any(fnmatch.fnmatch(path.name, each) for each in _OF_A_MODEL):
            _link(path, folder / path.name)
        elif path.name != "README.md":  # the card has taken its licence
            left_out.append(path.name)
    if left_out:
        log_warning(f"of {source} not published, since from_pretrained does not read it: {', '.join(left_out)}")


def _link(source: Path, to: Path) -> None:
    try:
        os.link(source.resolve(), to)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, to)


def _name_backbone(folder: Path, origin: str) -> None:
    """Have peft find the backbone on the hub, in place of a path on this machine."""
    name, revision = split_revision(origin) if origin else (None, None)
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, {**settings, "base_model_name_or_path": name, "revision": revision})
    note = folder / "backbone.json"
    if origin and note.exists():
        write_json(note, {**json.loads(note.read_text(encoding="utf-8")), "origin": origin})
