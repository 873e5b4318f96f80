"""What to train on a cohort and a machine: grid, windows, networks, batch, length, time and memory."""

from latentsynth.planning.plan import Plan, plan_runs
from latentsynth.planning.write import plan_files, write_plan

__all__ = ["Plan", "plan_files", "plan_runs", "write_plan"]
