"""The search as a Ray job: `ray job submit -- python -m mft_ray.tune --config FILE` is `mft-ray tune` there."""

from __future__ import annotations

import sys

from mft_ray.cli.main import run

if __name__ == "__main__":
    run(["tune", *sys.argv[1:]])
