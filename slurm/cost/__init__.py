"""What a training costs: images per second, hours, energy and memory, from constants with their sources."""
