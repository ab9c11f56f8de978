"""Every target, by name."""

from . import commands, files, results, resuming, saes, specs, stores
from .kit import Target

ALL: dict[str, Target] = {
    target.name: target for module in (specs, stores, files, saes, results, resuming, commands) for target in module.TARGETS
}
