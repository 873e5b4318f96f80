"""`latentsynth train ldm` as a script, for `accelerate launch scripts/train_ldm.py ...`. Same arguments, same help."""

import sys

from latentsynth.cli import main

if __name__ == "__main__":
    main(["train", "ldm", *sys.argv[1:]])
