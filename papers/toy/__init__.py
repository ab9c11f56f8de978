"""Experiment E1 of SplInterp (arXiv 2505.11836): k-means, an SAE and k-means with local PCA side by side on points of the plane."""
