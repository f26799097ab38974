"""Every metric on a real evaluation: names, and too few samples."""

import math

import pytest
import torch
from support.evaluations import REGISTRY, Constant, Made, draw, evaluation_of, measure


@pytest.mark.parametrize("name", ["energy", "frechet", "kinetic-energy", "path-length", "straightness"])
def test_built_in_metrics_measure_a_real_evaluation(name):
    evaluation = evaluation_of(Constant(torch.zeros(1, 2, 2, dtype=torch.float64)))
    metric = REGISTRY.create("metric", name)
    made = metric.measure(evaluation, torch.Generator().manual_seed(0))
    assert list(made) == [name.replace("-", "_")]
    assert all(math.isfinite(e.value) and e.stderr >= 0 for e in made.values())


@pytest.mark.parametrize(("name", "key"), [("energy", "energy_4_steps"), ("frechet", "frechet_4_steps")])
def test_chosen_steps_are_in_the_name(name, key):
    evaluation = evaluation_of(Constant(torch.ones(1, 2, 2, dtype=torch.float64)))
    assert list(REGISTRY.create("metric", name, steps=4).measure(evaluation, torch.Generator())) == [key]


@pytest.mark.parametrize("name", ["energy", "frechet"])
@pytest.mark.parametrize(("n", "m"), [(19, 40), (40, 19), (1, 40)])
def test_too_few_samples_are_refused(name, n, m):
    with pytest.raises(ValueError, match=f"got {min(n, m)} samples"):
        measure(name, Made(draw(n, 2, seed=0), draw(m, 2, seed=1)))
