"""Packages that can be called: `splinterp.train(…)` is the function `train` of `api`, and `from splinterp.train import TrainConfig` its package.

Python sets the attribute `train` of `splinterp` to the package whenever anything imports from it, whatever stood there: a function of the same
name would be there or not, by the order of imports. So it is the package that is called. To change a module's class is Python's own
way to give it behaviour (the data model, "Customizing module attribute access"); type checkers read the function's declaration in
`splinterp/__init__.py`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function(self)(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:  # what help and notebooks show
        return inspect.signature(_function(self))


def _function(package: ModuleType) -> Callable[..., Any]:
    """The function of `api` that is called like the package."""
    above, _, name = package.__name__.rpartition(".")
    return getattr(import_module(f"{above}.api"), name)  # not before it is called: `api` stands on top of all packages


def make_callable(package: str) -> None:
    """Let the package of this name, which is being imported, be called."""
    sys.modules[package].__class__ = _CallablePackage
