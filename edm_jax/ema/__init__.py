"""Averages of weights, tracked while training and rebuilt afterwards at any length.

Works with any training loop, for diffusion or not. `Averages` tracks and stores
power-function averages of a pytree; `reconstruct` makes averages of any profile from
these, with the expected error (Karras et al., arXiv 2312.02696, Sec. 3, App. C).
"""

from edm_jax.ema.averaging import (
    Averages,
    AverageState,
    gather,
    power_weight,
    restore,
    traditional_weight,
)
from edm_jax.ema.given import FunctionProfile, TableProfile
from edm_jax.ema.grammar import PROFILES, AnyProfile, MixedProfile
from edm_jax.ema.grammar import parse as parse_profile
from edm_jax.ema.posthoc import (
    MAX_ERROR,
    Reconstruction,
    reconstruct,
    reconstruct_trees,
)
from edm_jax.ema.power import (
    SIGMA_REL_LIMIT,
    gamma_from_sigma_rel,
    inner_product,
    sigma_rel_from_gamma,
)
from edm_jax.ema.profiles import (
    DecayProfile,
    LatestProfile,
    PowerProfile,
    TraditionalProfile,
    UniformProfile,
)
from edm_jax.ema.quadrature import Moments
from edm_jax.ema.snapshots import Snapshot, SnapshotMeta, list_snapshots
from edm_jax.ema.snapshots import read as read_snapshot
from edm_jax.ema.snapshots import write as write_snapshot
from edm_jax.ema.solver import RMS_ROUNDING, Solution, solve
from edm_jax.files import Damaged

__all__ = [
    "MAX_ERROR",
    "PROFILES",
    "RMS_ROUNDING",
    "SIGMA_REL_LIMIT",
    "AnyProfile",
    "AverageState",
    "Averages",
    "Damaged",
    "DecayProfile",
    "FunctionProfile",
    "LatestProfile",
    "MixedProfile",
    "Moments",
    "PowerProfile",
    "Reconstruction",
    "Snapshot",
    "SnapshotMeta",
    "Solution",
    "TableProfile",
    "TraditionalProfile",
    "UniformProfile",
    "gamma_from_sigma_rel",
    "gather",
    "inner_product",
    "list_snapshots",
    "parse_profile",
    "power_weight",
    "read_snapshot",
    "reconstruct",
    "reconstruct_trees",
    "restore",
    "sigma_rel_from_gamma",
    "solve",
    "traditional_weight",
    "write_snapshot",
]
