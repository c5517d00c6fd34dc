"""`python -m mft_ray` is `mft-ray`."""

from __future__ import annotations

from mft_ray.cli.main import run

if __name__ == "__main__":
    run()
