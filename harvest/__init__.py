"""Model and text to activations in a store. Called, it is `splinterp.api.harvest`."""

from ..callable_packages import make_callable
from .config import HarvestConfig, HarvestSettings
from .mixture import open_texts
from .plan import Plan, plan
from .probe import Probe, probe
from .run import harvest
from .stdlib import stdlib_documents, stdlib_files
from .text import TextSource, open_text

__all__ = [
    "HarvestConfig",
    "HarvestSettings",
    "Plan",
    "Probe",
    "TextSource",
    "harvest",
    "open_text",
    "open_texts",
    "plan",
    "probe",
    "stdlib_documents",
    "stdlib_files",
]

make_callable(__name__)
