"""Looks at the outputs of an encoder in training: `measures` defines what is measured, `probe` takes and keeps it."""
