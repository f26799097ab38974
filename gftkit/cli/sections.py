"""The keys of a configuration and of its sections: for ``gft keys`` and the tables of the documentation."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import Any

from gftkit.kernel.errors import unknown
from gftkit.kernel.kinds import KINDS
from gftkit.kernel.options import Option, options_of
from gftkit.networks.adapters import Adapters
from gftkit.networks.convention import Convention
from gftkit.recording.trackers import TRACKERS
from gftkit.runs.schema import Config, Evaluate, Objective, Train
from gftkit.study.schema import Definition, Group, Study

SECTIONS: Mapping[str, Any] = {
    "train": Train,
    "objective": Objective,
    "evaluate": Evaluate,
    "adapters": Adapters,
    "convention": Convention,
    "study": Study,
    "group": Group,
    "method": Definition,
    **TRACKERS,
}
"""The sections with keys, beside the components: of configurations, foreign drifts, trackers and studies."""


def section_keys(section: str | None = None) -> dict[str, Option]:
    """The keys of a section by name; without one those of a whole configuration.

    Raises:
        UnknownNameError: for an unknown section.

    Example:
        >>> section_keys("objective")["form"].default
        'blended'
        >>> section_keys("objective")["time"].default
        {'name': 'uniform'}
    """
    if section is None:
        return {name: option for name, option in options_of(Config, "the configuration").items() if name != "kind"}
    if section not in SECTIONS:
        kind = {"data": "dataset", "source": "dataset", "monitors": "monitor"}.get(section, section)
        hint = f"For the options of a component: `gft plugins show {kind} NAME`." if kind in KINDS else ""
        raise unknown("section", section, SECTIONS, hint)
    options = options_of(SECTIONS[section], section)
    # Of a default that is made anew for each section, the signature has a placeholder only.
    made = {key.name: key.default_factory for key in fields(SECTIONS[section]) if key.default_factory is not MISSING}
    return {name: replace(option, default=made[name]()) if name in made else option for name, option in options.items()}
