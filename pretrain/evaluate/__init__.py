"""Evaluation of a pretrained backbone."""
