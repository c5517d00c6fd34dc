"""Compare methods on one model under one budget: `python -m mft_ray.compare --config FILE`."""

from __future__ import annotations

from mft_ray import cli

_EXAMPLES = """
python -m mft_ray.compare --config tune_spaces/quickstart.yaml
python -m mft_ray.compare --config FILE --set compare.methods='[continued_fft, lora, mft]'
python -m mft_ray.compare --config FILE --set evaluation.tasks='[gsm8k]' --set run.dir=runs/mine
python -m mft_ray.compare --resume runs/mine
"""


def main() -> None:
    """Read the options and compare."""
    arguments = cli.parser(
        "Fine-tune a model fully (FFT), or take one that is; train every method of compare.methods on it with the same "
        "examples in the same order; score all on the same test examples and benchmark tasks; print one table of "
        "scores with intervals and of what each cost.",
        _EXAMPLES,
    )
    cli.add_run(arguments)
    config, resume = cli.read_run(arguments.parse_args())
    # Imported late: Ray and transformers take seconds, a mistyped option should be told at once.
    from mft_ray.comparison.run import compare

    compare(config, resume)


if __name__ == "__main__":
    cli.run(main)
