"""Test beds of claims: problems of known answer, the shipped loop in memory, likely slips, and statistics.

``symbolic`` isn't imported here: it loads sympy, which only proofs need.
"""

from gftkit_verification.testbeds.brownian import (
    ScaledPath as ScaledPath,
    TabulatedPath as TabulatedPath,
    unit_paths as unit_paths,
)
from gftkit_verification.testbeds.components import (
    broken_components as broken_components,
    components as components,
)
from gftkit_verification.testbeds.equations import (
    Equation as Equation,
    Forced as Forced,
    Mixed as Mixed,
    Scaled as Scaled,
    StepIntegrals as StepIntegrals,
)
from gftkit_verification.testbeds.loops import (
    Constant as Constant,
    LinearModel as LinearModel,
    LoopBuilder as LoopBuilder,
    Regression as Regression,
    build_loop as build_loop,
    fit_regression as fit_regression,
    step_gradient as step_gradient,
)
from gftkit_verification.testbeds.moments import (
    FineTune as FineTune,
    SigmaPoints as SigmaPoints,
    cpu_generator as cpu_generator,
    draw_fine_tunes as draw_fine_tunes,
    draw_seed as draw_seed,
    gauss_legendre as gauss_legendre,
    rho_of as rho_of,
    sigma_points as sigma_points,
)
from gftkit_verification.testbeds.pairs import (
    Joint as Joint,
    TwoClasses as TwoClasses,
    affine_regression as affine_regression,
    covariance as covariance,
    draw_joints as draw_joints,
    independent_cost as independent_cost,
    lower_bound as lower_bound,
)
from gftkit_verification.testbeds.problems import (
    COUPLINGS as COUPLINGS,
    GaussianData as GaussianData,
    draw_flow as draw_flow,
    random_covariance as random_covariance,
    random_flow as random_flow,
    retarget as retarget,
)
from gftkit_verification.testbeds.side_by_side import (
    Finite as Finite,
    Regressions as Regressions,
    draw_regressions as draw_regressions,
    weight_of as weight_of,
)
from gftkit_verification.testbeds.statistics import (
    cross_fitted_t as cross_fitted_t,
    equalise_columns as equalise_columns,
    student_t as student_t,
)
from gftkit_verification.testbeds.studies import Study as Study, draw_states as draw_states, take_steps as take_steps
