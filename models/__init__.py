"""Models that come with the package: `tiny`, a Hugging Face directory."""
