"""Images in files to views in batches."""
