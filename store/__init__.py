"""The activation store: written once, shuffled and checksummed; read many times; plain Zarr v3 to everybody else."""

from .check import verify
from .copy import copy
from .create import create
from .dataset import RowDataset
from .imports import import_files
from .layout import STORE_VERSION
from .merge import merge
from .opening import open_any as open
from .ranks import create_rank, join
from .reader import Site, Store
from .subset import subset
from .writer import Writer

__all__ = [
    "STORE_VERSION",
    "RowDataset",
    "Site",
    "Store",
    "Writer",
    "copy",
    "create",
    "create_rank",
    "import_files",
    "join",
    "merge",
    "open",
    "subset",
    "verify",
]
