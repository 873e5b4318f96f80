"""`latentsynth encode` as a script, for `accelerate launch scripts/encode_latents.py ...`. Same arguments, same help."""

import sys

from latentsynth.cli import main

if __name__ == "__main__":
    main(["encode", *sys.argv[1:]])
