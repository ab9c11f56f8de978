"""Figures 5, 6 and 7 of SplInterp (arXiv 2505.11836) and their variations: Voronoi diagrams, power diagrams, and how one is a slice of the other."""
