"""`python -m splinterp` is the command line."""

from .cli import main

main()
