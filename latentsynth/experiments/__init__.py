"""Grids of cells over everything else: the memorization study, and what is done with its verdicts."""
