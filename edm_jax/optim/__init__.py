"""Learning-rate schedules in images, the optimizer chain, and forced weight norm."""
