"""Fuzzing of every parser that we own: targets, for atheris (`fuzz_all.py`) and in a short form for the suite (`tests/test_bad_input.py`).

A target takes any bytes, and either takes something from them or raises a SplinterpError; it asks for no more than SECONDS and MEMORY.
"""

from .kit import MEMORY, SECONDS, Finding, Prepared, Target, attempt

__all__ = ["MEMORY", "SECONDS", "Finding", "Prepared", "Target", "attempt"]
