"""Training-dynamics ablations of EDM2 in JAX/Flax (Karras et al., arXiv 2312.02696)."""

__version__ = "0.1.0"
