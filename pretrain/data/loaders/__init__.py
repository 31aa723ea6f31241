"""Loaders: batches of views from a beton, a folder, or images on the device."""
