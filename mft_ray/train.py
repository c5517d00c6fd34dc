"""One training run without a search: `python -m mft_ray.train --method METHOD`."""

from __future__ import annotations

from mft_ray import cli
from mft_ray.errors import UserError
from mft_ray.training.methods import METHODS

_EXAMPLES = """
python -m mft_ray.train --method fft --config tune_spaces/quickstart.yaml --out runs/my-fft
python -m mft_ray.train --method mft --config FILE --out runs/my-mask --set mask.ratio=0.3 --set train.lr=3e-3
python -m mft_ray.train --method l1_mask --config FILE --out runs/rival --set mask.ratio=0.3
"""


def main() -> None:
    """Read the options and train."""
    arguments = cli.parser(
        "Train once, by the loop that searches use: fft fine-tunes every weight (settings: fft.train), mft learns "
        "one mask on model.path (settings: mask and train). Its rivals are masks that are not learned: of random "
        "entries, of the smallest weights (l1_mask), of the smallest weight times input (wanda_mask). An interrupted "
        "run goes on when called again.",
        _EXAMPLES,
    )
    arguments.add_argument("--method", choices=METHODS, required=True)
    cli.add_config(arguments)
    arguments.add_argument("--out", metavar="FOLDER", required=True, help="folder for the result; seen by every node")
    options = arguments.parse_args()
    config = cli.read_config(options)
    if options.method != "fft" and config.model.path is None:
        raise UserError("A mask is learned on a model that exists: give model.path, the fine-tuned checkpoint.")
    # Imported late: Ray and transformers take seconds, a mistyped option should be told at once.
    from mft_ray.search.single import train_once

    train_once(options.method, config, options.out)


if __name__ == "__main__":
    cli.run(main)
