"""Search for the best mask of a model: `python -m mft_ray.tune --config FILE`."""

from __future__ import annotations

from mft_ray import cli

_EXAMPLES = """
python -m mft_ray.tune --config tune_spaces/quickstart.yaml
python -m mft_ray.tune --config tune_spaces/gsm8k_smollm2.yaml --set search.trials=20
python -m mft_ray.tune --resume runs/quickstart-20260101-120000
python -m mft_ray.tune --resume runs/quickstart-20260101-120000 --set search.trials=32
ray job submit --working-dir . -- python -m mft_ray.tune --config FILE --set run.dir=/shared/runs/mine
"""


def main() -> None:
    """Read the options and search."""
    arguments = cli.parser(
        "Fine-tune a model fully (FFT), search for masks that make it better, and judge the best one on "
        "untouched test data. Leaves a run folder with leaderboard, verdict, mask, model and report.html.",
        _EXAMPLES,
    )
    cli.add_run(arguments)
    arguments.add_argument(
        "--look-again",
        action="store_true",
        help="with --resume, where another trial has become the best since the verdict: judge that one too. The "
        "verdict then says that the test examples were looked at before",
    )
    options = arguments.parse_args()
    config, resume = cli.read_run(options)
    # Imported late: Ray and transformers take seconds, a mistyped option should be told at once.
    from mft_ray.search.pipeline import search

    search(config, resume, options.look_again)


if __name__ == "__main__":
    cli.run(main)
