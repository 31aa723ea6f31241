"""Measures of an encoder's outputs during training: `measures` defines them, `spectrum_probe` records them."""
