#!/usr/bin/env bash
# Brings the test cluster up: munged, slurmctld and two slurmd, and with CLUSTER_ACCOUNTING=1 slurmdbd and a database, all
# on loopback, with all their files in CLUSTER_STATE.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
state=$CLUSTER_STATE
host=$(hostname -s)

fail() { echo "start.sh: $*" >&2; tail -n 5 "$state"/*.log >&2 2>/dev/null || true; exit 1; }
wait_for() {  # wait_for SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || fail "$what is not ready"; sleep 0.1; done
}
nodes_ready() { [ "$(sinfo -h -N -p main -t idle -o %N | sort -u | wc -l)" -eq 2 ]; }

"$here/stop.sh"
mkdir -p "$state/controller" "$state/spool.wb1" "$state/spool.wb2"
chmod 755 "$state"

# job ids never come again: a log or a result of an earlier cluster cannot be taken for one of this
conf=$(<"$here/slurm.conf.in")
conf=${conf//@STATE@/$state} conf=${conf//@USER@/$(id -un)} conf=${conf//@HOST@/$host} conf=${conf//@PORT@/$CLUSTER_PORT}
conf=${conf//@NODE_PORT_1@/$((CLUSTER_PORT + 1))} conf=${conf//@NODE_PORT_2@/$((CLUSTER_PORT + 2))}
conf=${conf//@CPUS@/$CLUSTER_CPUS}
accounting=AccountingStorageType=accounting_storage/none
[ "$CLUSTER_ACCOUNTING" = 0 ] || accounting="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((CLUSTER_PORT + 3))
AccountingStoragePass=$state/munge.sock
AccountingStorageEnforce=associations"
conf=${conf//@ACCOUNTING@/$accounting}
conf=${conf//@FIRST_JOB@/$(($(date +%s) % 600000 * 100 + 1))}
printf '%s\n%s\n' "$conf" "${CLUSTER_SETTINGS:-}" >"$SLURM_CONF"
# ranks of several nodes meet at the first node's name
for node in wb1 wb2; do
  getent hosts "$node" >/dev/null || echo "127.0.0.1 $node" >>/etc/hosts 2>/dev/null ||
    echo "start.sh: warning: $node does not resolve, and /etc/hosts is not writable" >&2
done
# slurmd wants a character device for each GPU, with a number at the end of its name
mkdir "$state/dev"
for i in 0 1 2 3; do ln -s /dev/null "$state/dev/gpu$i"; done
printf 'NodeName=wb[1-2] Name=gpu File=%s/dev/gpu[0-3]\n' "$state" >"$state/gres.conf"
printf 'CgroupPlugin=autodetect\n' >"$state/cgroup.conf"

(umask 077; head -c 128 /dev/urandom >"$state/munge.key")
munged --force --key-file="$state/munge.key" --socket="$state/munge.sock" --pid-file="$state/munged.pid" \
  --log-file="$state/munged.log" --seed-file="$state/munge.seed"
wait_for 10 munged munge -n -S "$state/munge.sock"
[ "$CLUSTER_ACCOUNTING" = 0 ] || . "$here/accounting.sh"
slurmctld
wait_for 30 slurmctld scontrol ping
for node in wb1 wb2; do slurmd -N "$node"; done
wait_for 30 "the nodes" nodes_ready
