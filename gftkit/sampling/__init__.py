"""Integration of one flow: schemes, steps and noise. It knows no run."""

from gftkit.sampling.integrate import (
    Grid as Grid,
    bind_conditions as bind_conditions,
    check_solver as check_solver,
    diffusion_of as diffusion_of,
    drift_at as drift_at,
    generate as generate,
    grid_of as grid_of,
    trajectory as trajectory,
)
from gftkit.sampling.noise import (
    BLOCK as BLOCK,
    ByBlock as ByBlock,
    FromGenerator as FromGenerator,
    draw_by_block as draw_by_block,
)
from gftkit.sampling.scheme import (
    DEFAULT_STEPS as DEFAULT_STEPS,
    Scheme as Scheme,
    build_scheme as build_scheme,
    default_solver as default_solver,
    resolve_scheme as resolve_scheme,
)
from gftkit.sampling.stochastic import (
    StochasticPath as StochasticPath,
    check_known_score as check_known_score,
    check_unpaired as check_unpaired,
)
