# Sourced: where the test cluster keeps its state, and how SLURM's commands find it.
export CLUSTER_STATE="${CLUSTER_STATE:-${TMPDIR:-/tmp}/whitebench-slurm}"
export CLUSTER_PORT="${CLUSTER_PORT:-16820}"   # slurmctld; the nodes' daemons and slurmdbd take the three after it
export CLUSTER_CPUS="${CLUSTER_CPUS:-4}"       # of each of the two nodes
export CLUSTER_ACCOUNTING="${CLUSTER_ACCOUNTING:-0}"   # 1: slurmdbd with a database, and only known accounts may submit
export SLURM_CONF="$CLUSTER_STATE/slurm.conf"
export PATH="$PATH:/usr/sbin"
