"""`latentsynth train autoencoder` as a script, for `accelerate launch scripts/train_autoencoder.py ...`. Same arguments, same help."""

import sys

from latentsynth.cli import main

if __name__ == "__main__":
    main(["train", "autoencoder", *sys.argv[1:]])
