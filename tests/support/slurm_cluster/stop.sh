#!/usr/bin/env bash
# Stops what start.sh started, by the pid files it left, and removes its files; safe to run at any time.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
state=$CLUSTER_STATE
[ -d "$state" ] || exit 0

runs() {  # runs PIDFILE NAME: never a pid that now is another's
  local pid
  pid=$(cat "$1" 2>/dev/null) && [[ -n $pid && $(cat "/proc/$pid/comm" 2>/dev/null) == "$2"* ]]
}
stop() {  # stop NAME PIDFILE...
  local name=$1 file; shift
  for file; do runs "$file" "$name" && kill "$(<"$file")"; done
  for file; do
    for _ in $(seq 100); do runs "$file" "$name" || break; sleep 0.1; done
    runs "$file" "$name" && kill -9 "$(<"$file")"
  done
}

if runs "$state/slurmctld.pid" slurmctld; then
  timeout 20 scancel --signal=KILL --full --state=RUNNING --user="$(id -un)" 2>/dev/null
  timeout 20 scancel --user="$(id -un)" 2>/dev/null
  for _ in $(seq 100); do [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break; sleep 0.1; done
fi
stop slurm "$state"/slurmd.*.pid "$state/slurmctld.pid"
stop slurmdbd "$state/slurmdbd.pid"
stop mariadbd "$state/mariadbd.pid"
stop munged "$state/munged.pid"
rm -rf "$state"
