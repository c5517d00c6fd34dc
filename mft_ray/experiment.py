"""Run the paper's experiments over seeds: `python -m mft_ray.experiment NAME… --config FILE`."""

from __future__ import annotations

from mft_ray import cli
from mft_ray.experiments.catalogue import EXPERIMENTS

_EXAMPLES = """
python -m mft_ray.experiment ratio --config tune_spaces/experiments/toy.yaml
python -m mft_ray.experiment curves layers ratio --config FILE
python -m mft_ray.experiment layers --config FILE --set experiment.seeds=5 --set experiment.group_sizes='[4, 8]'
python -m mft_ray.experiment transfer --config tune_spaces/experiments/toy.yaml
python -m mft_ray.experiment ratio --resume runs/toy-20260101-120000
"""


def main() -> None:
    """Read the options and run the experiment."""
    arguments = cli.parser(
        "Repeat experiments of the Mask Fine-Tuning paper (arXiv 2503.22764) on your model and data, over several "
        "seeds. Leaves of each a table with intervals, a figure and the raw rows.",
        _EXAMPLES,
    )
    arguments.add_argument(
        "names",
        nargs="+",
        choices=EXPERIMENTS,
        metavar="NAME",
        help=f"of an experiment: {', '.join(EXPERIMENTS)}. Several share the FFT models that they have in common",
    )
    cli.add_run(arguments)
    options = arguments.parse_args()
    config, resume = cli.read_run(options)
    # Imported late: Ray and transformers take seconds, a mistyped option should be told at once.
    from mft_ray.experiments.run import run_experiments

    run_experiments(options.names, config, resume)


if __name__ == "__main__":
    cli.run(main)
