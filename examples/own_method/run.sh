#!/usr/bin/env bash
# Pretrains examples/own_method/attract.py for one epoch on the built-in sample, and evaluates it.
# Further arguments override the recipe: examples/own_method/run.sh schedule.epochs=18
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export WHITEBENCH_METHODS=$here

whitebench data sample
id=$(whitebench pretrain "$here/attract.yaml" schedule.epochs=1 schedule.warmup_epochs=0 "$@" | tee /dev/stderr | sed -n 's/: done.*//p')
whitebench evaluate knn --ckpt "${WHITEBENCH_RUNS:-runs}/pretrain/$id" --protocol cosine-20
