"""One file per method; adding a method is adding a file."""
