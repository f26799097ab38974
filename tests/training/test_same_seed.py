"""The same seed gives the same weights, checkpoints, samples and log, bit for bit, as when the digests were taken.

The digests in tests/support/same_seed.json were taken at commit 90b8bb5, those of ``adaptive`` when it got a deadline,
and of its log when its monitor measured lags by flow time. They depend on torch and the processor: elsewhere the
rounded figures beside them are compared.
"""

import json

import pytest
import torch
from support import same_seed
from support.paths import ROOT

RECORDED = json.loads((ROOT / "tests/support/same_seed.json").read_text())
ROUNDING = 1e-3
"""Relative difference of figures between processors after 20 steps."""


def differences(found, known, exact):
    """The parts of a run that aren't as recorded."""
    if exact:
        return [part for part in known if found[part] != known[part]]
    pairs = zip(found["figures"], known["figures"], strict=True)
    return ["figures"] if any(abs(a - b) > ROUNDING * max(1, abs(b)) for a, b in pairs) else []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("same-seed")


@pytest.mark.parametrize("case", list(same_seed.CASES))
def test_a_run_repeats_the_recorded_one(case, folder):
    machine = same_seed.machine()
    known = RECORDED.get(machine) or next(iter(RECORDED.values()))
    assert differences(same_seed.run(case, folder), known[case], machine in RECORDED) == []


def test_another_seed_is_seen(folder):
    """A wrong twin: the digests and the figures of a run of another seed aren't those that were recorded."""
    kind, start, config = same_seed.CASES["pretrain"]
    assert (kind, start) == ("pretrain", None)
    case = {"other": (kind, start, {**config, "seed": config["seed"] + 1})}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(same_seed, "CASES", case)
        other = same_seed.run("other", folder)
    known = next(iter(RECORDED.values()))["pretrain"]
    assert set(differences(other, known, exact=True)) == set(known)
    assert differences(other, known, exact=False) == ["figures"]


def test_one_bit_is_seen():
    weights = {"w": torch.ones(3)}
    changed = {"w": torch.nextafter(torch.ones(3), torch.tensor(2.0))}
    assert same_seed.digest(weights) == same_seed.digest({"w": torch.ones(3)})
    assert same_seed.digest(weights) != same_seed.digest(changed)
