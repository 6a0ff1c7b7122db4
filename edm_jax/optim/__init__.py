"""Schedules in images, the optimizer chain, and its constraint on the weights."""
