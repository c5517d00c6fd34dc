"""Search for the best mask of a model: `python -m mft_ray.tune --config FILE`."""

from __future__ import annotations

from mft_ray import cli

_EXAMPLES = """
python -m mft_ray.tune --config tune_spaces/quickstart.yaml
python -m mft_ray.tune --config tune_spaces/gsm8k_smollm2.yaml --set search.trials=20
python -m mft_ray.tune --resume runs/quickstart-20260101-120000
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
    config, resume = cli.read_run(arguments.parse_args())
    # Imported late: Ray and transformers take seconds, a mistyped option should be told at once.
    from mft_ray.search.pipeline import search

    search(config, resume)


if __name__ == "__main__":
    cli.run(main)
