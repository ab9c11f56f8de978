"""The package's own exceptions: each is one or two plain sentences that say what is wrong, where, and what to do."""

from __future__ import annotations


class SplinterpError(Exception):
    """A problem that the user can mend. The command line prints it without a traceback and exits with 1."""


class StoreError(SplinterpError):
    """Something about a store: missing, damaged, unfinished, in use, or lacking what was asked of it."""


class ModelError(SplinterpError):
    """Something about a language model or its tokenizer: not found, or lacking a layer or hook."""


class TextError(SplinterpError):
    """Something about the text to harvest: missing, empty, or without the column asked for."""


class SAEError(SplinterpError):
    """Something about a sparse autoencoder's file or settings."""


class SaidElsewhere(SplinterpError):
    """Of several processes another tells the user of the problem, in these words: this one only ends."""


class Interrupted(SplinterpError):
    """The user pressed Ctrl-C; what is committed is kept."""
