"""splinterp: harvest a model's activations once, train sparse autoencoders on them many times."""

__version__ = "0.1.0"
