"""Make an ordinary Hugging Face model of a mask or an adapter."""

from __future__ import annotations

import argparse
from pathlib import Path

from mft_ray.cli.options import Command
from mft_ray.errors import UserError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", metavar="MODEL", required=True, help="folder or hub id of the FFT model")
    parser.add_argument("--mask", metavar="FILE", help="mask file, such as RUN/best/mask.safetensors")
    parser.add_argument("--adapter", metavar="FOLDER", help="LoRA adapter, such as RUN/best/adapter")
    parser.add_argument("--pretrained", metavar="MODEL", help="model before fine-tuning, for a mask of the delta")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="new folder for the model")


def _run(options: argparse.Namespace) -> None:
    if (options.mask is None) == (options.adapter is None):
        raise UserError("Give either --mask FILE or --adapter FOLDER: what is to be applied to the backbone.")
    from mft_ray.masking import load_mask

    mask = None if options.mask is None else load_mask(options.mask)
    from mft_ray.models.artifacts import export

    export(options.backbone, options.mask or options.adapter, Path(options.out), options.pretrained)
    if mask is not None:
        print(f"{options.mask}: {mask}")
    print(f"wrote {options.out}: load it with AutoModelForCausalLM.from_pretrained({options.out!r})")


COMMAND = Command(
    summary="make an ordinary Hugging Face model of a mask or an adapter",
    description="Apply a mask (or a LoRA adapter) to the model that it was learned on and write the result as an "
    "ordinary Hugging Face folder that from_pretrained loads. Refused when the backbone is another one.",
    examples="""
    mft-ray export --backbone runs/mine/work/fft/best --mask runs/mine/best/mask.safetensors --out my-model
    """,
    add_options=_add_options,
    run=_run,
)
