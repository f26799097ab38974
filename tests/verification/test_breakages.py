"""One slip at a time in a copy of the source: ``gft verify`` must end with exit code 1."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGES = ("gftkit", "plugins/gftkit_plugins", "verification/gftkit_verification")
PLUGINS = "plugins/gftkit_plugins"


@dataclass(frozen=True)
class Slip:
    """``old`` becomes ``new`` in one place of a file."""

    file: str
    old: str
    new: str


SLIPS = {
    "score-sign": Slip(
        "gftkit/theory/flow.py", "moving + expand(scale**2 / 2, noise)", "moving - expand(scale**2 / 2, noise)"
    ),
    "score-half": Slip("gftkit/theory/flow.py", "expand(scale**2 / 2, noise)", "expand(scale**2, noise)"),
    "conditional-score-sign": Slip("gftkit/theory/flow.py", "return -noise / expand", "return noise / expand"),
    "stochastic-drift-sign": Slip(
        "gftkit/theory/predictions.py", "velocity + diffusion**2 / 2", "velocity - diffusion**2 / 2"
    ),
    "stochastic-drift-half": Slip(
        "gftkit/theory/predictions.py", "velocity + diffusion**2 / 2", "velocity + diffusion**2"
    ),
    "retention": Slip(
        "gftkit/theory/objective.py", "return temperature / (1 + temperature)", "return 1 / (1 + temperature)"
    ),
    "anchor-shares-weights": Slip(
        "gftkit/networks/anchor.py", "copy.deepcopy(drift).eval().requires_grad_(False)", "drift"
    ),
    "swapped-path": Slip(f"{PLUGINS}/paths.py", "return 1 - t, t, torch.zeros_like(t)", "return t, 1 - t, 0 * t"),
    "noise-by-step": Slip("gftkit/sampling/integrate.py", "math.sqrt(h) * noise", "h * noise"),
    "score-of-noise": Slip("gftkit/theory/flow.py", "return -start / sigma", "return start / sigma"),
    "noise-of-choice": Slip("gftkit/sampling/stochastic.py", "return self._scale(t)", "return self._scale(t) ** 2"),
    "late-times": Slip(
        "gftkit/training/steps.py",
        "u = torch.rand(count, generator=generator, device=self.device)",
        "u = (1 + torch.rand(count, generator=generator, device=self.device)) / 2",
    ),
    "coupling-with-replacement": Slip(
        f"{PLUGINS}/couplings.py",
        "return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])",
        "return torch.randint(len(cost), (len(cost),))",
    ),
    "potentials-with-the-wrong-sign": Slip(
        f"{PLUGINS}/semidiscrete.py",
        '{"offset": ascent.offset(len(x1)).cpu()',
        '{"offset": -ascent.offset(len(x1)).cpu()',
    ),
    "ema-for-anchor": Slip(
        "gftkit/training/steps.py",
        "anchor = self.anchor if isinstance(temperature, Tensor) or temperature != 0 else None",
        "anchor = self.ema if isinstance(temperature, Tensor) or temperature != 0 else None",
    ),
    "last-step-dropped": Slip(
        "gftkit/sampling/integrate.py", "itertools.pairwise(grid.times):", "itertools.pairwise(grid.times[:-1]):"
    ),
    "closing-step-dropped": Slip("gftkit/sampling/integrate.py", "if grid.closing is not None:", "if False:"),
    "share-dropped": Slip("gftkit/theory/objective.py", "alpha=temperature / share", "alpha=temperature"),
    "anchor-chosen-twice": Slip(
        "gftkit/training/steps.py", "torch.randperm(n, generator", "torch.randint(n, (n,), generator"
    ),
    "flow-time-reversed": Slip(
        "gftkit/training/steps.py",
        "temperatures_of(profile, self._times_of(step)[0])",
        "temperatures_of(profile, 1 - self._times_of(step)[0])",
    ),
    "temperature-of-retention": Slip(
        "gftkit/theory/objective.py", "return retention / (1 - retention)", "return retention / (1 + retention)"
    ),
    "temperatures-of-other-samples": Slip(
        "gftkit/theory/objective.py", "temperature[indices] * pull", "temperature[: len(indices)] * pull"
    ),
    "end-from-the-start": Slip(
        f"{PLUGINS}/schedules.py", "min(progress / self.ramp, 1.0)", "1 - min(progress / self.ramp, 1.0)"
    ),
    "best-retention-sign": Slip(
        "gftkit/theory/retention_fit.py",
        "for left in (drift - target, distance)",
        "for left in (target - drift, distance)",
    ),
    "rising-schedule": Slip(f"{PLUGINS}/schedules.py", "(1 + math.cos(", "(1 - math.cos("),
}
"""By name: what ``gft verify`` must see."""


def verify(folder: Path, slip: Slip | None) -> subprocess.CompletedProcess[str]:
    """``gft verify`` on a copy of the packages with one slip."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    if slip is not None:
        source = (folder / slip.file).read_text()
        assert source.count(slip.old) == 1, f"{slip.file} has it {source.count(slip.old)} times: {slip.old}"
        (folder / slip.file).write_text(source.replace(slip.old, slip.new))
    path = os.pathsep.join(str(folder / package.rpartition("/")[0]) for package in PACKAGES)
    code = (
        "import sys, gftkit, gftkit_plugins, gftkit_verification; "
        f"assert all(m.__file__.startswith({str(folder)!r}) for m in (gftkit, gftkit_plugins, gftkit_verification)); "
        "from gftkit.cli.app import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "verify", "--json", "-"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_in_the_source_is_detected(name, tmp_path):
    process = verify(tmp_path, SLIPS[name])
    assert process.returncode == 1, process.stderr
    assert any(not claim["holds"] for claim in json.loads(process.stdout)), process.stderr


@pytest.mark.slow
def test_the_source_as_it_is_passes(tmp_path):
    process = verify(tmp_path, None)
    assert process.returncode == 0, process.stderr


def test_every_slip_applies_at_one_place_of_the_source():
    for slip in SLIPS.values():
        assert (ROOT / slip.file).read_text().count(slip.old) == 1, slip
