"""`python -m benchmarks gpu`: everything that needs a GPU, in one go."""

from __future__ import annotations

import sys

from benchmarks import gpu

if __name__ == "__main__":
    if sys.argv[1:2] != ["gpu"]:
        sys.exit("usage: python -m benchmarks gpu [--out FILE.json] [--small]")
    gpu.main(sys.argv[2:])
