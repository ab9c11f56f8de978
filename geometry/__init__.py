"""The geometry of SAEs (SplInterp): power diagrams and regions, and the two ends of the spectrum, k-means and local PCA."""

from .borders import Border, nearest_border
from .polyhedral import HalfSpaces, arrangement_generators, half_spaces
from .power_diagram import Conditions, Generators, PowerDiagram, active_generators, conditions, generators, power_distances
from .regions import RegionMap, Visits, affine_error, fingerprints, region_map
from .survey import survey
from .verification import DiagramCheck, Verification, check_arrangement

__all__ = [
    "Border",
    "Conditions",
    "DiagramCheck",
    "Generators",
    "HalfSpaces",
    "PowerDiagram",
    "RegionMap",
    "Verification",
    "Visits",
    "active_generators",
    "affine_error",
    "arrangement_generators",
    "check_arrangement",
    "conditions",
    "fingerprints",
    "generators",
    "half_spaces",
    "nearest_border",
    "power_distances",
    "region_map",
    "survey",
]
