# Sourced: where the test cluster keeps its state, and how SLURM's commands find it.
export CLUSTER_STATE="${CLUSTER_STATE:-${TMPDIR:-/tmp}/whitebench-slurm}"
export CLUSTER_PORT="${CLUSTER_PORT:-16820}"   # slurmctld; the nodes' daemons take the ports after it
export CLUSTER_CPUS="${CLUSTER_CPUS:-4}"       # of each of the two nodes
export SLURM_CONF="$CLUSTER_STATE/slurm.conf"
export PATH="$PATH:/usr/sbin"
