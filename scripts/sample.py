"""`latentsynth sample` as a script, for `accelerate launch scripts/sample.py ...`. Same arguments, same help."""

import sys

from latentsynth.cli import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
