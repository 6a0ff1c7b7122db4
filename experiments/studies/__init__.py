"""Studies: named lists of runs. Each file has `runs(workload) -> list[RunSpec]`."""
