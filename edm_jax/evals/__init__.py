"""How good a network is: held-out loss, dynamics, EMA lengths, distances."""
