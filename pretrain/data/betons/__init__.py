"""FFCV datasets (betons): written, verified and read."""
