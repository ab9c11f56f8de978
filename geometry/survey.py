"""What `splinterp geometry` tells of an SAE: its diagram verified on rows, the regions they visit, their maps and their borders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import SplinterpError
from ..sae import SAE
from ..sae.model import WITH_K
from .borders import nearest_border
from .power_diagram import active_generators, conditions, generators
from .regions import Visits, affine_error
from .verification import DiagramCheck, check_arrangement

MAPS = 64  # rows whose regions' maps are multiplied out
MOST_CELLS = 1024  # rows whose cells' generators are compared, of ReLU and JumpReLU
_AT_ONCE = 512

Progress = Callable[[int], None]


@torch.no_grad()
def survey(sae: SAE, batches: Iterable[Tensor], most: int, progress: Progress | None = None) -> dict[str, Any]:
    """The geometry of an SAE on the first `most` rows of batches [N, d_in] (float32, on the SAE's device).

    `generators`, and how many break the theorem's conditions: `zero_centres`, `duplicate_centres`, `duplicate_generators`. `verified`: of
    `verified_rows` less the `tied` ones, the share whose active set is the diagram's; `agree`: the same of all. `short`: rows with fewer
    than k active (null without a k). `regions`: distinct ones visited (`regions_whole`: False: there were more), `regions_once` by one row only,
    `largest_region` in rows. `map_error`: of `map_rows` the largest relative error of A·x + c. `border_median`, `border_min`: distances to the nearest border,
    `border_over_norm`: the median of distance/‖x‖; `border_swap`: the share of rows at whose nearest border a latent takes another's place.

    Raises:
        SplinterpError: there are no rows.
    """
    own, with_k = generators(sae), sae.config.architecture in WITH_K
    check, visits = DiagramCheck(sae) if with_k else None, Visits()
    first: list[Tensor] = []  # rows for what is not done on all
    distances, norms, swaps, rows = [], [], 0, 0
    for batch in batches:
        for x in batch[: most - rows].split(_AT_ONCE):
            if check:
                check.add(x)
            visits.add(active_generators(sae, sae.encode(x)))
            border = nearest_border(own, x)
            distances.append(border.distance)
            norms.append(x.double().norm(dim=1))
            swaps += int(((border.leaves >= 0) & (border.enters >= 0)).sum())
            if sum(map(len, first)) < MOST_CELLS:
                first.append(x)
            rows += len(x)
            if progress:
                progress(rows)
        if rows >= most:
            break
    if not rows:
        raise SplinterpError("There are no rows to look at.")
    sample = torch.cat(first)[:MOST_CELLS]
    counts = check.counts if check else check_arrangement(sae, sample)
    distance, norm, visited = torch.cat(distances), torch.cat(norms), visits.figures()
    return {
        "architecture": sae.config.architecture, "k": sae.config.k if with_k else None, "n_rows": rows, "generators": len(own.offsets),
        **conditions(sae)._asdict(),
        "verified": counts.share, "verified_rows": counts.rows, "tied": counts.tied, "agree": counts.agree / counts.rows,
        "short": counts.short if with_k else None,
        "regions": visited.regions, "regions_whole": visited.whole, "regions_once": visited.once, "largest_region": visited.largest,
        "map_error": affine_error(sae, sample[:MAPS]), "map_rows": min(MAPS, rows),
        "border_median": float(distance.median()), "border_min": float(distance.min()),
        "border_over_norm": float((distance / norm).median()), "border_swap": swaps / rows,
    }  # fmt: skip
