"""The second paper's experiments: "Compute optimal inference and provable amortisation gap in sparse autoencoders" (arXiv 2411.13117)."""
