"""One training run without a search: `python -m mft_ray.train --method METHOD`."""

from __future__ import annotations

from mft_ray import cli
from mft_ray.config import METHODS
from mft_ray.errors import UserError

_EXAMPLES = """
python -m mft_ray.train --method fft --config tune_spaces/quickstart.yaml --out runs/my-fft
python -m mft_ray.train --method mft --config FILE --out runs/my-mask --set mask.ratio=0.3 --set train.lr=3e-3
python -m mft_ray.train --method l1_mask --config FILE --out runs/rival --set mask.ratio=0.3
python -m mft_ray.train --method lora --config FILE --out runs/my-adapter --set lora.rank=16
"""


def main() -> None:
    """Read the options and train."""
    arguments = cli.parser(
        "Train once, by the loop that searches use, and leave a model, a mask or an adapter. fft starts from "
        "model.path or model.architecture; for all other methods model.path is the fine-tuned model. An interrupted "
        "run goes on when called again, a finished one is not trained again, and other settings or another method are "
        "refused there.",
        _EXAMPLES,
    )
    known = "; ".join(f"{name}: {spec.description}" for name, spec in METHODS.items())
    arguments.add_argument("--method", choices=tuple(METHODS), required=True, help=known)
    cli.add_config(arguments)
    arguments.add_argument("--out", metavar="FOLDER", required=True, help="folder for the result; seen by every node")
    options = arguments.parse_args()
    config = cli.read_config(options)
    if options.method != "fft" and config.model.path is None:
        raise UserError(
            f"Method {options.method} starts from a model that is fine-tuned: give model.path, that checkpoint."
        )
    # Imported late: Ray and transformers take seconds, a mistyped option should be told at once.
    from mft_ray.runs.train_once import train_once

    train_once(options.method, config, options.out)


if __name__ == "__main__":
    cli.run(main)
