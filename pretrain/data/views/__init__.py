"""Views of an image: random parameters, crop, colour."""
