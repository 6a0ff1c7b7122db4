"""Run directories: config, status, metrics and provenance as files."""
