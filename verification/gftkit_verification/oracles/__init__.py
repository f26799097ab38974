"""Exact oracles: flows whose drift, law and distances are known."""

from gftkit_verification.oracles.affine import (
    Blend as Blend,
    Marginal as Marginal,
    blend_drifts as blend_drifts,
    bures_wasserstein as bures_wasserstein,
    collocate as collocate,
    carry as carry,
    drift_gap as drift_gap,
    gaussian_kl as gaussian_kl,
    integrate as integrate,
    path_kl as path_kl,
    squared_gap as squared_gap,
)
from gftkit_verification.oracles.empirical import EmpiricalFlow as EmpiricalFlow
from gftkit_verification.oracles.gaussian import (
    Affine as Affine,
    AffineDrift as AffineDrift,
    CouplingName as CouplingName,
    Diffusion as Diffusion,
    GaussianFlow as GaussianFlow,
    bures_map as bures_map,
    square_root as square_root,
)
from gftkit_verification.oracles.mixture import MixtureFlow as MixtureFlow
