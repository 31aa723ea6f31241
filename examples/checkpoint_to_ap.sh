#!/usr/bin/env bash
# Fine-tunes a ResNet checkpoint of any project in Detectron2 and prints its box and mask AP.
# Usage: examples/checkpoint_to_ap.sh CHECKPOINT [options of coco_det.py]
# By default a short trial on the built-in scenes; for the papers' protocol:
#   examples/checkpoint_to_ap.sh moco.pth.tar --protocol c4-1x --coco /path/to/coco --gpus 8
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 CHECKPOINT [options]" >&2; exit 2; }
checkpoint=$1; shift
[ $# -gt 0 ] || { whitebench data sample; set -- --protocol sample --coco sample-det --iterations 20 --subset 20; }
whitebench detect --ckpt "$checkpoint" "$@"
