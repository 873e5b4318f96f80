"""`latentsynth evaluate` as a script, for `accelerate launch scripts/evaluate.py fidelity ...`. Same arguments, same help."""

import sys

from latentsynth.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
