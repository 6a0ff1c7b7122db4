"""What a network is worth: held-out loss, dynamics, EMA lengths, distances."""
