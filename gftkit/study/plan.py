"""A study's file, and the runs that it asks for."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gftkit.api import Run
from gftkit.generation.requested_retention import parse_retention_request
from gftkit.kernel.errors import ConfigError, GftkitError, RunError, unknown
from gftkit.kernel.options import plain
from gftkit.kernel.registry import Registry
from gftkit.runs.folder import is_run, write_config
from gftkit.runs.overrides import put
from gftkit.runs.resolve import resolve_config
from gftkit.runs.schema import INHERITED, Config, without_weights
from gftkit.storage.documents import parse_section, read_yaml
from gftkit.study.methods import Method, built_in, define_blend, define_method, with_size_and_seed
from gftkit.study.schema import Definition, Group, Study, check_base, check_group

CELLS, PRETRAINED = "cells", "pretrained"
"""Folders of a study's runs."""

NEED_ANCHOR = ("anchor", "monitors", "objective")
"""Keys of ``base`` that need a pretrained drift, which training from scratch doesn't have."""


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
        """The paired cell of another method."""
        return replace(self, method=method)


@dataclass(frozen=True)
class Pretrained:
    """The pretrained run that the cells of a coupling and seed start from.

    Attributes:
        folder: of the run.
        config: its configuration.
        made: whether the study itself pretrains it.
    """

    folder: Path
    config: Config
    made: bool


@dataclass(frozen=True)
class Plan:
    """A study's file, read and checked, with all runs that it asks for.

    Attributes:
        study: the content of the file.
        file: its path.
        out: the folder of the study.
        cells: all of them, in the order in which they are run.
        methods: those that are used, by name.
        starts: the pretrained run of each coupling and seed.
        templates: the configuration of each method and coupling, before size and seed.
        warnings: one sentence each.
    """

    study: Study
    file: Path
    out: Path
    cells: list[Cell]
    methods: dict[str, Method]
    starts: dict[tuple[str, int], Pretrained]
    templates: dict[tuple[str, str], Config]
    warnings: list[str]

    @property
    def title(self) -> str:
        """The title of the report."""
        return self.study.title or self.file.stem

    @property
    def first_starts(self) -> dict[str, Pretrained]:
        """The pretrained run of each coupling's first seed; those of other seeds differ in the seed only."""
        return {coupling: start for (coupling, _), start in reversed(self.starts.items())}

    def folder(self, cell: Cell) -> Path:
        """A cell's folder: that of its run, or of the measurements of another cell's run."""
        return self.out / CELLS / cell.name

    def trained(self, cell: Cell) -> Cell:
        """The cell whose run a cell measures: another one's where its method trains nothing."""
        return cell.beside(self.methods[cell.method].samples or cell.method)

    def config(self, cell: Cell) -> Config:
        """The configuration of the run that a cell measures."""
        before, after = self.first_starts[cell.coupling], self.starts[cell.coupling, cell.seed]
        own = _restarted(self.templates[cell.method, cell.coupling], before.folder, after.folder)
        return with_size_and_seed(own, self.methods[cell.method], cell.size, cell.seed)

    def matching_cells(self, pattern: str | None) -> list[Cell]:
        """The cells whose names match, all without a pattern.

        Raises:
            ConfigError: where none does.
        """
        cells = [cell for cell in self.cells if pattern is None or fnmatchcase(cell.name, pattern)]
        if not cells:
            raise ConfigError(
                f"--only {pattern}: no cell has such a name. Cells are METHOD/COUPLING/SIZE/SEED, such as "
                f"{self.cells[0].name}; * stands for anything."
            )
        return cells


def plan(file: Path, out: Path, registry: Registry) -> Plan:
    """Read and check a whole study's file; nothing is run, and nothing is written.

    Raises:
        ConfigError: for a key that is missing or has no valid value.
        UnknownNameError: for an unknown key, method, coupling or component.
        RunError: for a pretrained run that isn't finished.
    """
    folder = file.resolve().parent
    study = parse_section(Study, read_yaml(file), "the study")
    groups = [parse_section(Group, group, f"groups[{index}]") for index, group in enumerate(study.groups)]
    check_base(study.base)
    known = built_in(registry)
    own = {
        name: parse_section(Definition, written, f"methods.{name}") for name, written in (study.methods or {}).items()
    }
    methods = _methods(own, known, registry)
    for index, group in enumerate(groups):
        check_group(group, f"groups[{index}]", methods, registry)
    default_coupling, pretrained_of = _pretrained_runs(study, folder, out, registry)
    cells = _cells(groups, default_coupling)
    used = {name: methods[name] for name in methods if name in {cell.method for cell in cells}}
    if study.baseline not in used:
        raise unknown("method at baseline:", study.baseline, used, "It must be one that the groups name.")
    starts = {place: pretrained_of(*place) for place in {(cell.coupling, cell.seed): None for cell in cells}}
    planned = Plan(study=study, file=file, out=out, cells=cells, methods=used, starts=starts, templates={}, warnings=[])
    return _with_templates(planned, folder, registry)


def _methods(own: Mapping[str, Definition], known: Mapping[str, Method], registry: Registry) -> dict[str, Method]:
    """All methods by name: built-in ones, those of the study's file, and blends of either."""
    trained = {
        **known,
        **{
            name: define_method(name, one.method, one.set or {}, known)
            for name, one in own.items()
            if one.retention is None
        },
    }
    blends = {}
    for name, one in own.items():
        if one.retention is None:
            continue
        where = f"methods.{name}"
        if one.set is not None:
            raise ConfigError(f"{where}: `set` changes a training, and a method with `retention` has none. Remove one.")
        try:
            retention = parse_retention_request(one.retention, registry)
        except GftkitError as error:
            raise type(error)(f"{where}: {error}") from error
        if getattr(retention, "fitted_on", None) is not None:
            raise ConfigError(f"{where}: a fitted profile belongs to one run. Give its values as a `table`.")
        blends[name] = define_blend(name, one.method, one.retention, trained)
    return {**trained, **blends}


def _check_blends(planned: Plan) -> None:
    """Refuse a blend as baseline, without the runs that it samples, and of flows that are sampled with noise."""
    if planned.methods[planned.study.baseline].samples is not None:
        raise ConfigError(f"baseline: '{planned.study.baseline}' trains nothing. Choose a method that does.")
    there = set(planned.cells)
    for cell in planned.cells:
        sampled = planned.methods[cell.method].samples
        if sampled is None:
            continue
        if planned.trained(cell) not in there:
            raise ConfigError(
                f"groups: '{cell.method}' samples the runs of '{sampled}', and {planned.trained(cell).name} isn't a "
                f"cell. Add '{sampled}' to the group."
            )
        if "diffusion" in (planned.templates[cell.method, cell.coupling].evaluate.solver or {}):
            raise ConfigError(
                f"methods.{cell.method}: a blend of velocities has no known score, and base.evaluate.solver.diffusion "
                f"requires one (T12). Leave one of them out."
            )


def _with_templates(planned: Plan, folder: Path, registry: Registry) -> Plan:
    """The plan with the configuration of every method and coupling, for the first seed.

    Configurations are resolved against the folder of a pretrained run. For one that doesn't exist yet, a draft with its
    configuration only stands in, whose path is exchanged afterwards.
    """
    templates: dict[tuple[str, str], Config] = {}
    warnings: dict[str, None] = {}
    with tempfile.TemporaryDirectory() as drafts:
        for coupling, start in planned.first_starts.items():
            draft = Path(drafts) / coupling
            if not is_run(start.folder):
                draft.mkdir()
                write_config(draft, start.config)
            for name in dict.fromkeys(cell.method for cell in planned.cells if cell.coupling == coupling):
                method, at = planned.methods[name], start.folder if is_run(start.folder) else draft
                raw = _configuration(method, planned.study.base, start, at, coupling)
                for key, value in method.settings.items():
                    raw = put(raw, key, value, f"method '{name}'")
                try:
                    resolution = resolve_config(raw, method.kind, registry, folder=folder)
                except (ConfigError, RunError) as error:
                    raise type(error)(f"method '{name}': {error}") from error
                templates[name, coupling] = _restarted(resolution.config, at, start.folder)
                warnings |= dict.fromkeys(resolution.warnings)
    whole = replace(planned, templates=templates, warnings=list(warnings))
    _check_blends(whole)
    return whole


def _configuration(
    method: Method, base: Mapping[str, Any], start: Pretrained, folder: Path, coupling: str
) -> dict[str, Any]:
    """The configuration of a method before its own settings, as a file would have it."""
    raw = dict(base)
    if method.kind == "finetune":
        raw["pretrained"] = str(folder)
    else:
        raw = {key: value for key, value in raw.items() if key not in NEED_ANCHOR}
        parent = {key: plain(getattr(start.config, key)) for key in INHERITED}
        raw = {**parent, "drift": without_weights(parent["drift"]), **raw}
    if start.config.coupling["name"] != coupling:
        raw["coupling"] = {"name": coupling}
    if method.replays:
        raw["data"] = {"name": "replay", "target": raw.get("data"), "run": str(folder)}
    return raw


def _restarted(config: Config, before: Path, folder: Path) -> Config:
    """A configuration with another folder of its pretrained run."""
    if before == folder:
        return config
    data = {key: folder if value == before else value for key, value in config.data.items()}
    return replace(config, pretrained=None if config.pretrained is None else folder, data=data)


def _pretrained_runs(
    study: Study, folder: Path, out: Path, registry: Registry
) -> tuple[str, Callable[[str, int], Pretrained]]:
    """The coupling of groups that name none, and a function from a coupling and a seed to its pretrained run."""
    if (study.pretrained is None) == (study.pretrain is None):
        raise ConfigError(
            "the study: wanted `pretrained: RUN`, or `pretrain:` with the configuration of a pretraining or its file; "
            "one of the two."
        )
    if study.pretrained is not None:
        if study.pretrain_per_seed:
            raise ConfigError("pretrain_per_seed: `pretrained` is one finished run. Give `pretrain` instead.")
        run = Run.open(folder / study.pretrained, registry)
        if not run.finished:
            raise RunError(f"pretrained: {run.folder} isn't finished. Continue it with --resume, then compare.")
        config = run.config
        return str(config.coupling["name"]), lambda *_: Pretrained(run.folder.resolve(), config, False)
    if isinstance(study.pretrain, str):
        file = folder / study.pretrain
        raw, beside = read_yaml(file), file.resolve().parent
    else:
        raw, beside = dict(study.pretrain or {}), folder
    named = raw.get("coupling") is not None
    place = out.resolve() / PRETRAINED

    def start(coupling: str, seed: int) -> Pretrained:
        own = raw if named else {**raw, "coupling": {"name": coupling}}
        at = place if named else place / coupling
        if study.pretrain_per_seed:
            own, at = {**own, "seed": seed}, at / str(seed)
        return Pretrained(at, resolve_config(own, "pretrain", registry, folder=beside).config, True)

    one = resolve_config(raw, "pretrain", registry, folder=beside).config
    return str(one.coupling["name"]), start


def _cells(groups: Sequence[Group], default_coupling: str) -> list[Cell]:
    """Every cell once, group by group and seed by seed: an interrupted study then has complete sets of methods."""
    cells: dict[Cell, None] = {}
    for group in groups:
        for seed in group.seeds:
            for size in group.sizes:
                for coupling in group.couplings or [default_coupling]:
                    cells |= {Cell(method, coupling, size, seed): None for method in group.methods}
    return list(cells)
