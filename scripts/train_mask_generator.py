"""`latentsynth train masks` as a script, for `accelerate launch scripts/train_mask_generator.py ...`. Same arguments."""

import sys

from latentsynth.cli import main

if __name__ == "__main__":
    main(["train", "masks", *sys.argv[1:]])
