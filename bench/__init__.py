"""Benchmarks that anybody can run: `splinterp bench`."""
