"""Run folders in, tables out. `whitebench.records` and `whitebench.errors` are the ground floor of all rooms."""
