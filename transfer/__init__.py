"""A backbone in, AP out: `python transfer/coco_det.py --ckpt PATH`."""
