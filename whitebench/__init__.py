"""The ground floor: errors, records, hashes, files, locks. Light: imports neither torch nor pandas."""
