"""A sweep in, jobs out: `python slurm/launch_sweep.py [SWEEP]`."""
