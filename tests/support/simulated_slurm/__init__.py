"""A SLURM cluster of any size in simulated time, driven by the project's own submission code.

`controller` holds the queue, `commands` reads and answers squeue, sbatch and the others, `server` puts those commands
on PATH, `scripts` does in this process what a job's batch script would do, `simulation` lets the time pass.
"""
