"""The retention that is requested of a blend: a number or a profile, checked before anything is computed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gftkit.kernel.contracts import Profile
from gftkit.kernel.errors import ConfigError
from gftkit.kernel.registry import Registry
from gftkit.networks.anchor import short_hash
from gftkit.runs.folder import RunFolder
from gftkit.storage.tensors import digest
from gftkit.theory.objective import retention as retention_of
from gftkit.theory.temperature import TIMES, check_profile

Retention = float | Profile
"""rho: one number for all flow times, or a profile."""

RetentionRequest = float | Profile | Mapping[str, Any] | str
"""A retention as a user gives it: a profile also as its spec, ``{name: ...}``, or its name."""

CHECKED = torch.cat([torch.tensor([0.0, 1.0], dtype=torch.float64), TIMES])
"""Flow times at which a profile is checked and compared: solvers evaluate at both ends too."""


def parse_retention_request(
    request: RetentionRequest | None, registry: Registry, temperature: float | None = None
) -> Retention:
    """The retention that is requested, or that of the temperature; 0.0 where neither is given.

    Args:
        request: the retention, finite and below 1.
        registry: has the profiles.
        temperature: in its place, a finite number above -1.

    Raises:
        ConfigError: where both are given, for a value out of range, and a profile that can't be built.
    """
    if request is None:
        try:
            return 0.0 if temperature is None else retention_of(float(temperature))
        except ValueError as error:
            raise ConfigError(f"{error}") from None
    if temperature is not None:
        raise ConfigError(
            "temperature and retention: got both, and each determines the other: retention = temperature/(1 + "
            "temperature). Give one of them."
        )
    if isinstance(request, bool) or (isinstance(request, int | float) and not -math.inf < request < 1):
        at_one = " At 1 the blend would be the pretrained drift: sample the pretrained run for that."
        raise ConfigError(
            f"retention: wanted a finite number below 1, or a profile, got {request}.{at_one if request >= 1 else ''}"
        )
    if isinstance(request, int | float):
        return float(request)
    profile: Profile = request if isinstance(request, Profile) else registry.build("profile", request, "retention")
    check_profile(profile, "retention", CHECKED)
    return profile


def describe_retention(retention: Retention, times: Sequence[float] = ()) -> float | str:
    """A number where the retention is the same at all flow times, else a short hash of its values.

    Args:
        retention: to describe.
        times: flow times that count beside those that are checked.
    """
    if isinstance(retention, float):
        return retention
    at = torch.cat([CHECKED, torch.tensor(times, dtype=CHECKED.dtype)])
    values = check_profile(retention, "retention", at)
    constant = bool((values == values[0]).all())
    return float(values[0]) if constant else f"profile {short_hash(digest({'times': at, 'retentions': values}))}"


def retention_at(retention: Retention, t: float) -> float:
    """The retention at one flow time; raises as ``check_profile``."""
    if isinstance(retention, float):
        return retention
    return float(check_profile(retention, "retention", torch.tensor([t], dtype=torch.float64)))


def check_fitted(retention: Retention, run: RunFolder, **hashes: str) -> None:
    """Refuse a profile that was fitted to another run or anchor.

    Args:
        retention: to check; a number, or a profile without ``fitted_on``, belongs to no run.
        run: whose drift is blended.
        **hashes: ``weights``, the digest of its trained weights, or ``anchor``, the hash of its anchor, or both.

    Raises:
        ConfigError: where one differs, and where the profile doesn't say what it was fitted to.
    """
    fitted_on: Mapping[str, Any] | None = getattr(retention, "fitted_on", None)
    if fitted_on is None:
        return
    for key, own in hashes.items():
        if key not in fitted_on:
            raise ConfigError(
                f"retention: the profile doesn't say which {key} it was fitted to (`fitted_on.{key}` is missing), so "
                f"it can't be compared with {run.folder}. Fit one to that run, or give its values as a `table`."
            )
        if fitted_on[key] != own:
            raise ConfigError(
                f"retention: the profile was fitted to {fitted_on.get('run', 'another run')}, with {key} "
                f"{short_hash(str(fitted_on[key]))}, and {run.folder} has {key} {short_hash(own)}. Fit a profile to "
                f"this run, or sample the one that it was fitted to."
            )
