"""Moments of laws to draw from, compared with stated ones."""

import math

import torch

DRAWS = 10_000
ERRORS = 5.0
"""Bound in standard errors: about 1e-6 false alarms for each of the few dozen numbers compared."""
CLEARLY = 3 * ERRORS
"""What a wrong law must exceed."""


def deviation(x, mean, covariance):
    """The largest distance of sample mean and covariance from the stated ones, in standard errors.

    x (n, d), mean (d,), covariance (d, d). The errors are the sample's own, so nothing is assumed of the law.
    """
    x = x.double()
    centred = x - mean
    products = (centred[:, :, None] * centred[:, None, :]).flatten(1)  # (n, d d)
    wrong = torch.cat([x - mean, products - covariance.flatten()], 1)
    errors = wrong.std(0) / math.sqrt(len(x))
    return float((wrong.mean(0).abs() / errors).max())


def draws(law, seed=0):
    return law.draw(DRAWS, torch.Generator().manual_seed(seed))
