"""`python -m benchmarks gpu`: everything that needs a GPU. `python -m benchmarks compare`: named comparisons side by side."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["gpu"]:
        from benchmarks import gpu

        gpu.main(sys.argv[2:])
    elif sys.argv[1:2] == ["compare"]:
        from benchmarks import comparisons

        comparisons.main(sys.argv[2:])
    else:
        sys.exit("usage: python -m benchmarks gpu [--out FILE.json] [--small] | compare [NAME ...] [--out FILE.json]")
