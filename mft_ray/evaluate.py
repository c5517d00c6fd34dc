"""Score a model, with or without a mask: `python -m mft_ray.evaluate`."""

from __future__ import annotations

from mft_ray import cli

_EXAMPLES = """
python -m mft_ray.evaluate --config tune_spaces/gsm8k_smollm2.yaml --model FOLDER --out scores.json
python -m mft_ray.evaluate --config FILE --model RUN/work/fft/best --mask RUN/best/mask.safetensors --split test
"""


def main() -> None:
    """Read the options and score."""
    arguments = cli.parser(
        "Score a model on the data and by the metric that a config names, and print score and standard error.",
        _EXAMPLES,
    )
    cli.add_config(arguments)
    arguments.add_argument("--model", metavar="MODEL", help="folder or hub id; without it, the config's model.path")
    arguments.add_argument("--mask", metavar="FILE", help="mask file to apply to the model")
    arguments.add_argument("--split", choices=("validation", "test"), default="validation")
    arguments.add_argument("--out", metavar="FILE", help="write per-example scores there as JSON")
    options = arguments.parse_args()
    config = cli.read_config(options)
    # Imported late: Ray and transformers take seconds, a mistyped option should be told at once.
    from mft_ray.search.single import evaluate_once

    evaluate_once(config, options.model, options.mask, options.split, options.out)


if __name__ == "__main__":
    cli.run(main)
