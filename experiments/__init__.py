"""What a user runs. Each file is one command; `python experiments/NAME.py --help`."""
