"""Names of a metric's values."""

from typing import Annotated

from pydantic import Field

SolverSteps = Annotated[int, Field(gt=0)] | None
"""Solver steps, or None for the evaluation's own number."""


def value_name(metric: str, steps: int | None) -> str:
    """``metric``, or ``metric_4_steps`` where the number of solver steps was chosen.

    Example:
        >>> value_name("energy", None), value_name("energy", 4)
        ('energy', 'energy_4_steps')
    """
    return metric if steps is None else f"{metric}_{steps}_steps"
