"""``python -m latentsynth`` is the ``latentsynth`` command."""

from latentsynth.cli import main

if __name__ == "__main__":
    main()
