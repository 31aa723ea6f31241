#!/usr/bin/env bash
# From a folder of images (FOLDER/<class>/*.jpg) to a pretrained backbone and its k-NN accuracy.
# Usage: examples/own_images.sh FOLDER [recipe keys, e.g. schedule.epochs=100 batch=256]
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 FOLDER [key=value ...]" >&2; exit 2; }
folder=$1; shift
name=$(basename "$folder")

# A fifth of each class is kept for validation; a folder with train/ and val/ needs no --val-fraction.
[ -e "${WHITEBENCH_DATA:-data}/$name/manifest.json" ] || whitebench data write "$folder" "$name" --val-fraction 0.2
recipe=(sample/intl "data.dataset=$name" schedule.epochs=1 schedule.warmup_epochs=0 batch=16 monitor.knn_every=0 "$@")
whitebench data show "${recipe[@]}"
id=$(whitebench pretrain "${recipe[@]}" | tee /dev/stderr | sed -n 's/: done.*//p')
whitebench evaluate knn --ckpt "${WHITEBENCH_RUNS:-runs}/pretrain/$id" --protocol cosine-20
