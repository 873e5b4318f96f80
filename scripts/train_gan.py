"""`latentsynth train gan` as a script, for `accelerate launch scripts/train_gan.py ...`. Same arguments, same help."""

import sys

from latentsynth.cli import main

if __name__ == "__main__":
    main(["train", "gan", *sys.argv[1:]])
