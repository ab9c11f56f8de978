"""Theorems 3.1 and C.6 of SplInterp (arXiv 2505.11836): the proximal alternation descends."""
