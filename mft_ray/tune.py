"""Search for the best mask of a model: `python -m mft_ray.tune --config FILE`."""

from __future__ import annotations

from mft_ray import cli
from mft_ray.errors import UserError

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
    cli.add_config(arguments, required=False)
    arguments.add_argument("--resume", metavar="RUN", help="go on with an interrupted search")
    options = arguments.parse_args()
    if (options.config is None) == (options.resume is None):
        raise UserError("Give either --config FILE for a new search or --resume RUN for an interrupted one.")
    if options.resume and options.overrides:
        raise UserError("--resume goes on with the run's own config.yaml; --set cannot change it now.")
    config = cli.read_config(options) if options.config else None
    # Imported late: Ray and transformers take seconds, a mistyped option should be told at once.
    from mft_ray.search.pipeline import search

    search(config, options.resume)


if __name__ == "__main__":
    cli.run(main)
