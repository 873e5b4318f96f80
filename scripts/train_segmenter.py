"""`latentsynth train segmenter` as a script, for `accelerate launch scripts/train_segmenter.py ...`. Same arguments, same help."""

import sys

from latentsynth.cli import main

if __name__ == "__main__":
    main(["train", "segmenter", *sys.argv[1:]])
