"""Images in, a backbone out: `python -m pretrain RECIPE [key=value ...]`."""
