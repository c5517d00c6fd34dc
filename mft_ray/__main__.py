"""`python -m mft_ray` is `mft-ray`."""

from __future__ import annotations

import sys

from mft_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
