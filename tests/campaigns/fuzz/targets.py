"""Every target, by name."""

from . import commands, files, results, saes, specs, stores
from .kit import Target

ALL: dict[str, Target] = {
    target.name: target for module in (specs, stores, files, saes, results, commands) for target in module.TARGETS
}
