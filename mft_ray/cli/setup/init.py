"""Write a first configuration for a model and data."""

from __future__ import annotations

import argparse
from pathlib import Path

from mft_ray.cli.options import Command
from mft_ray.errors import UserError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="MODEL", required=True, help="folder or hub id of the model")
    parser.add_argument("--train", metavar="FILE", required=True, help="file, folder or hub id of the training data")
    parser.add_argument("--test", metavar="FILE", help="test data; without it, some of the training data is held out")
    parser.add_argument("--prompt-column", metavar="NAME", help="column of the prompt, where it has no usual name")
    parser.add_argument("--answer-column", metavar="NAME", help="column of the answer")
    parser.add_argument(
        "--fine-tuned", action="store_true", help="the model is fine-tuned on this task already: do not train FFT"
    )
    parser.add_argument("--out", metavar="FILE", default="search.yaml", help="file to write (default: %(default)s)")


def _run(options: argparse.Namespace) -> None:
    out = Path(options.out)
    if out.exists():
        raise UserError(f"There is a file {out} already. Give another --out, or move it away.")
    from mft_ray.preflight.first_config import first_config
    from mft_ray.utils.files import write_text

    text = first_config(
        options.model,
        options.train,
        options.test,
        prompt_column=options.prompt_column,
        answer_column=options.answer_column,
        fine_tuned=options.fine_tuned,
    )
    write_text(out, text)
    print(text)
    print(f"wrote {out}. Look it over, then: mft-ray tune --config {out}")


COMMAND = Command(
    summary="write a commented configuration for your model and data, after a look at both",
    description="Look at a model (architecture, layers, chat template) and at data (columns, rows, lengths) and at "
    "this machine, and write a commented configuration of a search for them.",
    examples="""
    mft-ray init --model my-model --train train.jsonl --test test.jsonl
    mft-ray init --model owner/name --train rows.csv --prompt-column ask --answer-column reply --out mine.yaml
    """,
    add_options=_add_options,
    run=_run,
)
