"""A study's file, and what is to be run for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gftkit.api import Run
from gftkit.kernel.errors import ConfigError, RunError, unknown
from gftkit.kernel.options import plain
from gftkit.kernel.registry import Registry
from gftkit.runs.folder import is_run
from gftkit.runs.overrides import put
from gftkit.runs.resolve import resolve_config
from gftkit.runs.schema import DEFAULTS, INHERITED, Config, without_weights
from gftkit.storage.documents import parse_section, read_yaml
from gftkit.study.methods import Method, built_in, defined, stamped

Names = Annotated[list[str], Field(min_length=1)]
Sizes = Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]

CELLS, PRETRAINED = "cells", "pretrained"
"""Folders of a study's runs."""

BASE = ("data", "train", "evaluate", "objective", "monitors", "track", "drift", "source", "path", "anchor")
"""Keys of a configuration that a study's cells may share."""

LEFT_OUT = ("anchor", "monitors", "objective")
"""Keys of ``base`` that training from scratch, which has no pretrained drift, does without."""


@dataclass(frozen=True)
class Group:
    """Cells of a study: every method with every coupling, size and seed. Cells of several groups count once.

    Args:
        methods: built-in methods, or those of ``methods``.
        sizes: numbers of training samples.
        seeds: of subset, order, source, times and noise: the same seed is the same in every method.
        couplings: by name; null for the pretrained run's.
    """

    methods: Names
    sizes: Sizes
    seeds: Seeds
    couplings: Names | None = None


@dataclass(frozen=True)
class Definition:
    """A method of one's own: a built-in one with other settings.

    Args:
        method: the built-in method; null for that of the same name.
        set: values by keys of the configuration, such as {train.steps: 7500}.
    """

    method: str | None = None
    set: dict[str, Any] | None = None


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        metric: the one that is judged, by the name that its values have; lower is better.
        groups: cells, a list of {methods, couplings, sizes, seeds}.
        base: what every cell shares: data without `count` and `seed`, train, evaluate, and other keys of a fine-tune.
        pretrained: the run folder that every cell starts from.
        pretrain: in its place, the configuration of a pretraining that is run first, or its file. Where it names no
            coupling, one is run for each coupling of the groups.
        methods: methods of one's own, {NAME: {method: BUILT-IN, set: {A.B: VALUE}}}.
        baseline: the method that the others are compared with, cell by cell.
        title: of the report.
    """

    metric: str
    groups: Annotated[list[dict[str, Any]], Field(min_length=1)]
    base: dict[str, Any]
    pretrained: str | None = None
    pretrain: str | dict[str, Any] | None = None
    methods: dict[str, dict[str, Any]] | None = None
    baseline: str = "plain"
    title: str | None = None


@dataclass(frozen=True, order=True)
class Cell:
    """One run of a study."""

    method: str
    coupling: str
    size: int
    seed: int

    @property
    def name(self) -> str:
        """METHOD/COUPLING/SIZE/SEED, its folder within that of the cells."""
        return f"{self.method}/{self.coupling}/{self.size}/{self.seed}"

    def beside(self, method: str) -> "Cell":
        """The cell of another method, paired with this one."""
        return replace(self, method=method)


@dataclass(frozen=True)
class Start:
    """Where the cells of a coupling start.

    Attributes:
        folder: of the pretrained run.
        config: its configuration.
        made: whether the study pretrains it.
    """

    folder: Path
    config: Config
    made: bool


@dataclass(frozen=True)
class Plan:
    """A study's file, read and checked, with everything that is to be run.

    Attributes:
        study: what the file says.
        file: its path.
        out: where the study's folders are.
        cells: all of them, in the order in which they are run.
        methods: those that are used, by name.
        starts: the pretrained run of each coupling.
        templates: the configuration of each method and coupling, before size and seed.
        warnings: one sentence each.
    """

    study: Study
    file: Path
    out: Path
    cells: list[Cell]
    methods: dict[str, Method]
    starts: dict[str, Start]
    templates: dict[tuple[str, str], Config]
    warnings: list[str]

    @property
    def title(self) -> str:
        """Of the report."""
        return self.study.title or self.file.stem

    def folder(self, cell: Cell) -> Path:
        """A cell's run folder."""
        return self.out / CELLS / cell.name

    def config(self, cell: Cell) -> Config:
        """A cell's configuration."""
        return stamped(self.templates[cell.method, cell.coupling], self.methods[cell.method], cell.size, cell.seed)

    def chosen(self, pattern: str | None) -> list[Cell]:
        """The cells whose names match, all without a pattern.

        Raises:
            ConfigError: where none does.
        """
        found = [cell for cell in self.cells if pattern is None or fnmatchcase(cell.name, pattern)]
        if not found:
            raise ConfigError(
                f"--only {pattern}: no cell is called so. Cells are METHOD/COUPLING/SIZE/SEED, such as "
                f"{self.cells[0].name}; * stands for anything."
            )
        return found


def plan(file: Path, out: Path, registry: Registry) -> Plan:
    """Read a study's file, and check it whole: nothing is run, and nothing written.

    Raises:
        ConfigError: for a key that is missing or has no valid value.
        UnknownNameError: for an unknown key, method, coupling or component.
        RunError: for a pretrained run that isn't finished.
    """
    folder = file.resolve().parent
    study = parse_section(Study, read_yaml(file), "the study")
    groups = [parse_section(Group, group, f"groups[{index}]") for index, group in enumerate(study.groups)]
    _check_base(study.base)
    known = built_in(registry)
    own = {name: parse_section(Definition, given, f"methods.{name}") for name, given in (study.methods or {}).items()}
    methods = {**known, **{name: defined(name, one.method, one.set or {}, known) for name, one in own.items()}}
    for index, group in enumerate(groups):
        _check_group(group, f"groups[{index}]", methods, registry)
    usual, starts_of = _starting(study, folder, out, registry)
    cells = _cells(groups, usual)
    used = {name: methods[name] for name in methods if name in {cell.method for cell in cells}}
    if study.baseline not in used:
        raise unknown("method at baseline:", study.baseline, used, "It must be one of those that the groups name.")
    starts = {coupling: starts_of(coupling) for coupling in {cell.coupling: None for cell in cells}}
    made = Plan(study, file, out, cells, used, starts, {}, [])
    return _with_templates(made, folder, registry)


def _with_templates(made: Plan, folder: Path, registry: Registry) -> Plan:
    """The plan with the configuration of every method and coupling. Pretrainings are there as drafts, where not yet."""
    import tempfile

    from gftkit.runs.folder import write_config

    templates: dict[tuple[str, str], Config] = {}
    warnings: dict[str, None] = {}
    with tempfile.TemporaryDirectory() as drafts:
        for coupling, start in made.starts.items():
            draft = Path(drafts) / coupling
            if not is_run(start.folder):
                draft.mkdir()
                write_config(draft, start.config)
            for name in dict.fromkeys(cell.method for cell in made.cells if cell.coupling == coupling):
                method, at = made.methods[name], start.folder if is_run(start.folder) else draft
                raw = _configuration(method, made.study.base, start, at, coupling)
                for key, value in method.settings.items():
                    raw = put(raw, key, value, f"method '{name}'")
                try:
                    resolution = resolve_config(raw, method.kind, registry, folder=folder)
                except (ConfigError, RunError) as error:
                    raise type(error)(f"method '{name}': {error}") from error
                templates[name, coupling] = _moved(resolution.config, at, start.folder)
                warnings |= dict.fromkeys(resolution.warnings)
    return replace(made, templates=templates, warnings=list(warnings))


def _configuration(
    method: Method, base: Mapping[str, Any], start: Start, folder: Path, coupling: str
) -> dict[str, Any]:
    """The configuration of a method before its own settings, as a file would have it."""
    raw = dict(base)
    if method.kind == "finetune":
        raw["pretrained"] = str(folder)
    else:
        raw = {key: value for key, value in raw.items() if key not in LEFT_OUT}
        parent = {key: plain(getattr(start.config, key)) for key in INHERITED}
        raw = {**parent, "drift": without_weights(parent["drift"]), **raw}
    if start.config.coupling["name"] != coupling:
        raw["coupling"] = {"name": coupling}
    if method.replays:
        raw["data"] = {"name": "replay", "target": raw.get("data"), "run": str(folder)}
    return raw


def _moved(config: Config, before: Path, folder: Path) -> Config:
    """A configuration with another pretrained run: that which a draft stood for."""
    if before == folder:
        return config
    data = {key: folder if value == before else value for key, value in config.data.items()}
    return replace(config, pretrained=None if config.pretrained is None else folder, data=data)


def _starting(study: Study, folder: Path, out: Path, registry: Registry) -> tuple[str, Any]:
    """The coupling where a group names none, and the pretrained run of each coupling as a function."""
    if (study.pretrained is None) == (study.pretrain is None):
        raise ConfigError(
            "the study: wanted `pretrained: RUN`, or `pretrain:` with the configuration of a pretraining or its file; "
            "one of the two."
        )
    if study.pretrained is not None:
        run = Run.open(folder / study.pretrained, registry)
        if not run.finished:
            raise RunError(f"pretrained: {run.folder} isn't finished. Go on with it by --resume, then compare.")
        config = run.config
        return str(config.coupling["name"]), lambda _: Start(run.folder.resolve(), config, False)
    if isinstance(study.pretrain, str):
        place = folder / study.pretrain
        raw, beside = read_yaml(place), place.resolve().parent
    else:
        raw, beside = dict(study.pretrain or {}), folder
    if raw.get("coupling") is not None:
        one = resolve_config(raw, "pretrain", registry, folder=beside).config
        return str(one.coupling["name"]), lambda _: Start(out.resolve() / PRETRAINED, one, True)

    def start(coupling: str) -> Start:
        config = resolve_config({**raw, "coupling": {"name": coupling}}, "pretrain", registry, folder=beside).config
        return Start(out.resolve() / PRETRAINED / coupling, config, True)

    return str(DEFAULTS["coupling"]["name"]), start


def _cells(groups: Sequence[Group], usual: str) -> list[Cell]:
    """Every cell once: group by group, seed by seed, so that an interrupted study has whole sets of methods."""
    found: dict[Cell, None] = {}
    for group in groups:
        for seed in group.seeds:
            for size in group.sizes:
                for coupling in group.couplings or [usual]:
                    found |= {Cell(method, coupling, size, seed): None for method in group.methods}
    return list(found)


def _check_group(group: Group, where: str, methods: Mapping[str, Method], registry: Registry) -> None:
    for method in group.methods:
        if method not in methods:
            raise unknown(f"method at {where}:", method, methods, "Methods of one's own stand in `methods`.")
    for coupling in group.couplings or ():
        registry.component("coupling", coupling, f"{where}.couplings")
    for key in ("methods", "sizes", "seeds", "couplings"):
        given = getattr(group, key) or []
        twice = [value for value in given if given.count(value) > 1]
        if twice:
            raise ConfigError(f"{where}.{key}: {twice[0]} stands twice. Leave one of them out.")


def _check_base(base: Mapping[str, Any]) -> None:
    from gftkit.kernel.options import check_known
    from gftkit.study.methods import OWNED

    for key in base:
        if key in OWNED:
            raise ConfigError(f"base: `{key}` is set by the study, from {OWNED[key]}. Leave it out.")
    for key, cure in (("schedule", "a schedule is a method"), ("adapters", "LoRA is a method")):
        if key in base:
            raise ConfigError(f"base: `{key}` isn't shared: {cure}, named in the groups or defined in `methods`.")
    check_known(base, BASE, "base")
    data = base.get("data")
    if data is None:
        raise ConfigError("base.data is missing: wanted e.g. `data: {name: digits, split: train}`.")
    for key in ("count", "seed") if isinstance(data, Mapping) else ():
        if key in data:
            raise ConfigError(f"base.data: `{key}` is set by the study, from {OWNED[f'data.{key}']}. Leave it out.")
