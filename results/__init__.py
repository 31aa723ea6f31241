"""Run folders in, tables out. `results.record` and `results.command` are the ground floor of all rooms."""
