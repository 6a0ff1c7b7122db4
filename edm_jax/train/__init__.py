"""The training loop and all that keeps it alive."""
