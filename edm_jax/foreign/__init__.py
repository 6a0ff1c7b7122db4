"""Averages of other people's weights: their files, without their packages.

`series.open_series` reads what a directory of files holds, `rebuild` makes averages of any
profile of it in one pass and writes them in the same format, and `solving` says how
exactly. Needs NumPy alone; nothing in a file is run.
"""
