#!/usr/bin/env bash
# Fine-tunes a checkpoint of any project, a ResNet or a plain vision transformer, in Detectron2 and prints its box and mask AP.
# Usage: examples/checkpoint_to_ap.sh CHECKPOINT [options of coco_det.py]
# By default a short trial on the built-in scenes, by the protocol for them that takes this network; for the papers':
#   examples/checkpoint_to_ap.sh moco.pth.tar --protocol c4-1x --coco /path/to/coco --gpus 8
#   examples/checkpoint_to_ap.sh mae_pretrain_vit_base.pth --protocol vitdet-b-100ep --coco /path/to/coco --gpus 8
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 CHECKPOINT [options]" >&2; exit 2; }
checkpoint=$1; shift
[ $# -gt 0 ] || { whitebench data sample; set -- --coco sample-det --iterations 20 --subset 20; }
whitebench detect --ckpt "$checkpoint" "$@"
