"""Standardised errors for statistical claims: signed, and exactly Student's t for normal samples."""

import math

from torch import Tensor


def student_t(samples: Tensor, expected: float = 0.0) -> float:
    """(mean - expected) in standard errors, over independent samples (n,): Student's t with n - 1 degrees of freedom.

    Raises:
        ValueError: for fewer than two samples.

    Example:
        >>> import torch
        >>> round(student_t(torch.tensor([1.0, 2.0, 3.0]), 0.0), 4)
        3.4641
    """
    if samples.ndim != 1 or len(samples) < 2:
        raise ValueError(f"wanted at least two samples, (n,), got {tuple(samples.shape)}.")
    apart = float(samples.double().mean()) - expected
    error = float(samples.double().std()) / math.sqrt(len(samples))
    if error == 0:
        return math.copysign(math.inf, apart) if apart else 0.0
    return apart / error


def cross_fitted_t(samples: Tensor, expected: Tensor) -> float:
    """One standardised error for a whole vector: independent samples (n, k) against their expected mean (k,).

    The first half of the samples chooses the direction in which its mean lies off, the second half is tested along it:
    a true statement gives exactly Student's t with n - n//2 - 1 degrees of freedom (for normal samples), since the
    direction is independent of what is tested; a wrong one is seen along its own error.

    Raises:
        ValueError: for fewer than four samples.
    """
    if samples.ndim != 2 or len(samples) < 4:
        raise ValueError(f"wanted at least four samples, (n, k), got {tuple(samples.shape)}.")
    apart = samples.double() - expected.double()
    half = len(samples) // 2
    return student_t(apart[half:] @ apart[:half].mean(0))


def equalise_columns(samples: Tensor) -> Tensor:
    """Samples (n, k) of mean 0, each column in units of its standard deviation, for ``cross_fitted`` against 0.

    The deviations are those of the half that chooses the direction, so that the test stays exact. Columns of very
    different spread then all count: else the widest hides what the others show.
    """
    return samples / samples[: len(samples) // 2].std(0)
