"""Make an ordinary Hugging Face model of a mask or an adapter."""

from __future__ import annotations

import argparse
from pathlib import Path

from mft_ray.cli.options import Command, add_output
from mft_ray.errors import UserError
from mft_ray.utils.json_types import JsonObject


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_folder", metavar="RUN", nargs="?", help="run folder or address of a search, in place of all but --out"
    )
    parser.add_argument("--trial", metavar="ID", help="with RUN: another trial than the one that was judged")
    parser.add_argument("--backbone", metavar="MODEL", help="folder or hub id of the FFT model")
    parser.add_argument("--mask", metavar="FILE", help="mask file, such as RUN/best/mask.safetensors, or hub id")
    parser.add_argument("--adapter", metavar="FOLDER", help="LoRA adapter, such as RUN/best/adapter, or hub id")
    parser.add_argument("--pretrained", metavar="MODEL", help="model before fine-tuning, for a mask of the delta")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="new folder for the model")
    add_output(parser, quiet=False)


def _run(options: argparse.Namespace) -> JsonObject:
    given = [name for name in ("backbone", "mask", "adapter", "pretrained") if getattr(options, name) is not None]
    if options.run_folder is not None:
        if given:
            raise UserError(f"RUN says all that is needed: leave out {', '.join(f'--{name}' for name in given)}.")
        return _of_run(options)
    if options.trial is not None:
        raise UserError("--trial names a trial of a run: give the run folder too, mft-ray export RUN --trial ID.")
    if options.backbone is None:
        raise UserError("Give a run folder, or --backbone MODEL with --mask FILE or --adapter FOLDER.")
    if (options.mask is None) == (options.adapter is None):
        raise UserError("Give either --mask FILE or --adapter FOLDER: what is to be applied to the backbone.")
    from mft_ray.masking import load_mask
    from mft_ray.models.hub import local_artifact

    mask = None if options.mask is None else load_mask(local_artifact(options.mask))
    from mft_ray.models.artifacts import export

    export(options.backbone, options.mask or options.adapter, Path(options.out), options.pretrained)
    if mask is not None:
        print(f"{options.mask}: {mask}")
    _tell(options.out)
    return {"schema": 1, "model": str(Path(options.out).absolute()), "trial": None}


def _of_run(options: argparse.Namespace) -> JsonObject:
    from mft_ray.models.artifacts import export
    from mft_ray.runs.picked import picked
    from mft_ray.runs.stored import fetched
    from mft_ray.utils.formatting import unit

    found = picked(fetched(options.run_folder), options.trial)
    export(found.backbone, str(found.artifact), Path(options.out), found.pretrained)
    trial, shown = found.trial, unit(found.metric)
    print(
        f"trial {trial.trial_id}: {shown.score(trial.score)} on validation, {shown.delta(trial.delta_fft)} against FFT"
    )
    if not found.judged:
        print(
            "It has not been judged on test examples, and as one of several it looks better on validation than it is: "
            "mft-ray score says what it is worth."
        )
    _tell(options.out)
    return {"schema": 1, "model": str(Path(options.out).absolute()), "trial": trial.content(), "judged": found.judged}


def _tell(out: str) -> None:
    print(f"wrote {out}: load it with AutoModelForCausalLM.from_pretrained({out!r})")


COMMAND = Command(
    summary="make an ordinary Hugging Face model of a mask or an adapter",
    description="Apply a mask (or a LoRA adapter) to the model that it was learned on and write the result as an "
    "ordinary Hugging Face folder that from_pretrained loads: of a search that of its winner, or of another trial. "
    "Refused when the backbone is another one.",
    examples="""
    mft-ray export runs/mine --out my-model
    mft-ray export runs/mine --trial 954d45f6 --out another
    mft-ray export --backbone runs/mine/work/fft/best --mask runs/mine/best/mask.safetensors --out my-model
    """,
    add_options=_add_options,
    run=_run,
)
