"""The geometry of SAEs (SplInterp): power diagrams and regions, and the two ends of the spectrum, k-means and local PCA. Called, it is `splinterp.api.geometry`."""

from ..callable_packages import make_callable
from .borders import Border, nearest_border
from .kmeans import Cells, kmeans_centres
from .local_pca import LocalPCA, RegionMoments, rank_rule, region_cost
from .own_regions import bound_on_own_regions
from .planar import PlanarCells, lifted, planar_cells, slice_weights
from .polyhedral import HalfSpaces, arrangement_generators, half_spaces
from .power_diagram import Conditions, Generators, PowerDiagram, active_generators, conditions, generators, power_distances
from .regions import RegionMap, Visits, affine_error, fingerprints, region_map
from .spectrum import SpectrumOptions, price_for, spectrum
from .survey import survey
from .verification import DiagramCheck, Verification, check_arrangement

__all__ = [
    "Border",
    "Cells",
    "Conditions",
    "DiagramCheck",
    "Generators",
    "HalfSpaces",
    "LocalPCA",
    "PlanarCells",
    "PowerDiagram",
    "RegionMap",
    "RegionMoments",
    "SpectrumOptions",
    "Verification",
    "Visits",
    "active_generators",
    "affine_error",
    "arrangement_generators",
    "bound_on_own_regions",
    "check_arrangement",
    "conditions",
    "fingerprints",
    "generators",
    "half_spaces",
    "kmeans_centres",
    "lifted",
    "nearest_border",
    "planar_cells",
    "power_distances",
    "price_for",
    "rank_rule",
    "region_cost",
    "region_map",
    "slice_weights",
    "spectrum",
    "survey",
]

make_callable(__name__)
