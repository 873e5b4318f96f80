"""`latentsynth experiment utility` as a script, for `accelerate launch`. Same arguments, same help."""

import sys

from latentsynth.cli import main

if __name__ == "__main__":
    main(["experiment", "utility", *sys.argv[1:]])
