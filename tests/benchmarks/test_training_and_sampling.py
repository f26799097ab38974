"""The benchmarks time what they say, on both sides, and write what they measured."""

import importlib.util
import json
import sys
from contextlib import ExitStack

import pytest
import torch
from support.paths import ROOT

from gftkit.kernel.contracts import Estimate

CPU = torch.device("cpu")
KEYS = {"name", "ours_seconds", "peer", "peer_seconds", "ratio", "target"}
FOLDER = ROOT / "benchmarks"


def script(name):
    """A script as a module; what it imports lies beside it."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.fixture(scope="module")
def training():
    return script("training")


@pytest.fixture(scope="module")
def sampling():
    return script("sampling")


def row(training, name):
    (found,) = [row for row in training.ROWS if name in row.name]
    return found


@pytest.fixture
def peer():
    pytest.importorskip("torchcfm", reason="torchcfm isn't installed: pip install --no-deps torchcfm")


def test_the_anchor_is_evaluated_in_gft_steps_and_not_in_plain_ones(training):
    asked = []
    with ExitStack() as stack:
        for name in ("frozen anchor", "temperature 0"):
            ours, plain = row(training, name).sides(CPU, stack)
            ours.__self__.anchor.module.register_forward_hook(lambda *_, name=name: asked.append(name))
            assert plain.__self__.anchor is None
            for step in (ours, plain):
                assert float(step(0)["loss"]) > 0
    assert asked == ["frozen anchor"]


def test_the_run_with_sharing_goes_from_hot_to_cool(training):
    with ExitStack() as stack:
        ours, plain = row(training, "anchor sharing").sides(CPU, stack)
        shares = [ours(step)["anchor_share"] for step in (0, 500, 999)]
        assert shares[0] > 0.8 > shares[1] > 0
        assert shares[2] < 0.02
        assert plain(0)["anchor_share"] == 0


def test_both_sides_train_the_same_network(training, peer, monkeypatch):
    made, network = [], training.network
    monkeypatch.setattr(training, "network", lambda *given: made.append(network(*given)) or made[-1])
    with ExitStack() as stack:
        sides = row(training, "GFT step: MLP 512x3, 64 dimensions").sides(CPU, stack)
        before = [torch.nn.utils.parameters_to_vector(net.parameters()).clone() for net in made]
        assert torch.equal(*before)
        for side in sides:
            side(0)
        after = [torch.nn.utils.parameters_to_vector(net.parameters()) for net in made]
        for one, other in zip(before, after, strict=True):
            assert 0 < (other - one).abs().max() < 3e-4  # one step of Adam at 2e-4


def test_the_rows_are_written(training, peer, tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["training.py", "--quick", "--only", "64 dimensions", "--json", str(file)])
    training.main(training.__doc__, training.rows)
    rows, out = json.loads(file.read_text()), capsys.readouterr().out
    assert [row["target"] for row in rows] == [0.85, 1.05]
    for row in rows:
        assert row.keys() == KEYS
        assert row["ratio"] == pytest.approx(row["ours_seconds"] / row["peer_seconds"])
        assert row["name"] in out


@pytest.mark.parametrize(
    ("capability", "targets"), [("AVX512", [1.0]), ("AVX2", [1.0, None])], ids=["bfloat16", "without"]
)
def test_speed_options_are_those_of_the_hardware(training, monkeypatch, capability, targets):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert [row.target for row in training.fast_rows(CPU)] == targets
    assert "bfloat16" in training.fast_rows(CPU)[-1].name


def test_unknown_rows_are_refused(training, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training.py", "--only", "128 dimensions"])
    with pytest.raises(SystemExit):
        training.main(training.__doc__, training.rows)
    assert "no row contains '128 dimensions'; there are: GFT step" in capsys.readouterr().err


def test_both_sides_of_sampling_call_the_network_as_often(sampling, monkeypatch):
    """Of the same states, at times that go from 0 to 1, and with noise where that is said."""
    for name in ("torchsde", "torchdiffeq"):
        pytest.importorskip(name)
    for named in sampling.ROWS:
        if "batch 256" not in named.name:
            continue
        seen = []
        network = sampling.network(sampling.MLP, sampling.PLANE, CPU)
        network.register_forward_pre_hook(lambda _, given, seen=seen: seen.append((float(given[0][0]), given[1].shape)))
        monkeypatch.setattr(sampling, "network", lambda *_, network=network: network)
        with ExitStack() as stack:
            counts, ends = [], []
            for side in named.sides(CPU, stack):
                seen.clear()
                ends.append(side(0))
                counts.append(len(seen))
                assert len({shape for _, shape in seen}) == 1
        assert counts[0] == 100
        assert counts[1] in (100, 101, 102), named.name  # torchsde adds its steps up in float32
        if "torchdiffeq" in named.peer:
            assert torch.allclose(*ends, atol=1e-3)
        if "torchsde" in named.peer:
            assert abs(float(ends[0].std() - ends[1].std())) < 0.2
            assert float((ends[0] - ends[1]).abs().max()) > 0.1  # each its own noise


def test_intervals_are_counted_where_they_hold_what_they_estimate(capsys, monkeypatch):
    intervals = script("intervals")
    assert intervals.covers(Estimate(1.0, 0.1), 1.15)
    assert not intervals.covers(Estimate(1.0, 0.1), 1.25)
    assert not intervals.covers(Estimate(1.0, 9.0, (0.9, 1.1)), 1.15)  # its own interval counts, not the error
    monkeypatch.setattr(intervals, "METRICS", ("energy", "precision-recall"))
    intervals.main(["--repetitions", "20", "--sizes", "25"])
    rows = {line.split("|")[1].strip(): line.split("|")[3:5] for line in capsys.readouterr().out.splitlines()[2:]}
    assert set(rows) == {"`energy`", "`precision`", "`recall`", "`density`", "`coverage`"}
    assert all(float(share.strip(" %")) >= 60 for share in rows["`energy`"])
    monkeypatch.setattr(intervals, "measure", lambda metric, size, shift, seed: {metric: Estimate(float(seed), 0.1)})
    intervals.main(["--repetitions", "20", "--sizes", "25"])  # the negative control: errors that are far too small
    assert "| 0 % | 0 % |" in capsys.readouterr().out
