"""Conditions: from the data through the loop, the anchor and the monitors to the drift, and left out of some."""

import numpy
import pytest
import torch
import yaml

import gftkit
from gftkit.data import conditions
from gftkit.data.samples import Samples
from gftkit.data.subset import select_subset
from gftkit.experiment.probes import PROBED
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import ConfigError, DataError, GftkitError
from gftkit.runtime.randomness import stream

N = 40


def arrays(folder, **changed):
    """A file of two-dimensional samples around their condition ``where``, and a sequence ``text`` with padding."""
    numbers = numpy.random.default_rng(0)
    where = numbers.uniform(-1, 1, (N, 2)).astype("float32")
    text = numbers.normal(size=(N, 3, 4)).astype("float32")
    text[::2, 2] = 0
    held = {"x1": 3 * where, "label": numpy.arange(N) % 2, "where": where, "text": text} | changed
    numpy.savez(folder / "data.npz", **held)
    return folder / "data.npz"


def config(folder, drift=(), data=(), **train):
    """A small conditional run."""
    return {
        "drift": {"name": "mlp", "width": 8, "depth": 1, "conditions": ["where", "text"], **dict(drift)},
        "data": {"name": "arrays", "file": str(folder / "data.npz"), "conditions": ["where", "text"], **dict(data)},
        "train": {"steps": 2, "batch_size": 8, "log_every": 1, **train},
        "evaluate": {"count": 20, "metrics": []},
    }


class Recorder(torch.nn.Module):
    """A drift that keeps what it was given."""

    conditions, null = ("where", "label"), {"where": 9.0, "label": 7}

    def __init__(self, seen=None):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen = [] if seen is None else seen

    def __deepcopy__(self, memo):
        return Recorder(self.seen)

    def forward(self, t, x, where, label):
        self.seen.append({"where": where.clone(), "label": label.clone(), "train": self.training})
        return self.scale * x


class RecorderPlugin:
    def __init__(self, seen):
        self.seen = seen

    @gftkit.hookimpl
    def gftkit_drifts(self):
        def recorder() -> torch.nn.Module:
            """A drift that keeps what it was given."""
            return Recorder(self.seen)

        return {"recorder": recorder}


def test_a_batch_carries_its_conditions_through_indexing_and_devices():
    batch = Batch(torch.zeros(4, 2), None, None, {"age": torch.arange(4.0)})
    assert batch[1:3].conditions["age"].tolist() == [1, 2]
    assert batch.to("cpu")[torch.tensor([3])].conditions["age"].tolist() == [3]


def test_a_drift_is_given_what_it_declares_and_nothing_else():
    batch = Batch(torch.zeros(4, 2), torch.arange(4), None, {"age": torch.arange(4.0), "text": torch.zeros(4, 3)})
    drift = torch.nn.Identity()
    assert conditions.conditions_of(drift, batch) == {}
    drift.conditions = ("age", "label")
    assert list(conditions.conditions_of(drift, batch)) == ["age", "label"]
    drift.conditions = ("age", "height")
    with pytest.raises(DataError, match=r"lack 'height'.*they have: 'age', 'text', 'label'"):
        conditions.conditions_of(drift, batch)


def test_conditions_are_left_out_whole_samples_at_a_time_and_only_where_there_is_a_null():
    drift = torch.nn.Identity()
    drift.null = {"age": torch.tensor([5.0, 6.0]), "label": 3}
    given = {"age": torch.zeros(3, 2), "label": torch.zeros(3, dtype=torch.int64), "mask": torch.ones(3)}
    some = conditions.without_conditions(drift, given, torch.tensor([False, True, False]))
    assert some["age"].tolist() == [[0, 0], [5, 6], [0, 0]]
    assert some["label"].tolist() == [0, 3, 0]
    assert some["label"].dtype == torch.int64
    assert some["mask"] is given["mask"]
    assert conditions.without_conditions(drift, given)["label"].tolist() == [3, 3, 3]
    share = conditions.draw_dropped(20_000, 0.1, torch.Generator().manual_seed(0)).double().mean()
    assert abs(share - 0.1) < 5 * (0.09 / 20_000) ** 0.5


def test_loop_and_anchor_are_given_the_same_and_as_much_is_left_out(tmp_path):
    file, seen = arrays(tmp_path), []
    registry = gftkit.load({"recorder": RecorderPlugin(seen)})
    run = config(tmp_path, data={"conditions": ["where"]}) | {"drift": {"name": "recorder"}}
    run["train"] |= {"condition_dropout": 0.5, "batch_size": 16, "steps": 3}
    gftkit.pretrain(run, tmp_path / "before", registry=registry)
    seen.clear()
    after = {**run, "pretrained": str(tmp_path / "before"), "schedule": {"name": "constant"}}
    gftkit.finetune(after, tmp_path / "after", registry=registry)
    seen = [call for call in seen if len(call["label"]) > PROBED]
    steps = [index for index, call in enumerate(seen) if call["train"]]
    assert len(steps) == 3
    with numpy.load(file) as held:
        where, label = torch.from_numpy(held["where"]), torch.from_numpy(held["label"])
    for step, index in enumerate(steps):
        anchor, drift = seen[index - 1], seen[index]
        assert torch.equal(anchor["where"], drift["where"])
        assert torch.equal(anchor["label"], drift["label"])
        out = (drift["where"] == 9).all(1)
        assert torch.equal(out, drift["label"] == 7)
        assert torch.equal(out, conditions.draw_dropped(16, 0.5, stream(0, "condition-dropout", step)))
        rows = [int((where == value).all(1).nonzero()[0, 0]) for value in drift["where"][~out]]
        assert torch.equal(drift["label"][~out], label[rows]), "a condition of another sample"


@pytest.mark.parametrize(("name", "options"), [("mlp", {"width": 16}), ("unet", {"width": 4, "multipliers": (1,)})])
def test_a_built_in_drift_depends_on_each_condition_and_knows_that_none_is_given(registry, name, options):
    event = (1, 4, 4)
    shapes = {"age": (), "where": (2,), "text": (3, 4)}
    torch.manual_seed(0)
    drift = registry.create(
        "drift", name, event_shape=event, classes=3, condition_shapes=shapes, conditional=True,
        conditions=list(shapes), **options,
    ).double()  # fmt: skip
    for parameter in drift.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    t, x = torch.rand(5).double(), torch.randn(5, *event).double()
    given = {key: torch.randn(5, *shape).double() for key, shape in shapes.items()} | {"label": torch.arange(5) % 3}
    with torch.no_grad():
        usual = drift(t, x, **given)
        for key in given:
            other = given | {key: given[key].roll(1, 0)}
            assert not torch.allclose(drift(t, x, **other), usual), key
        none = conditions.without_conditions(drift, given)
        assert set(drift.null) == set(drift.conditions) == set(given)
        absent = drift(t, x, **none)
        assert absent.isfinite().all()
        assert not torch.allclose(absent, usual)
        # One sample's null is its own: the others are as before.
        mixed = drift(t, x, **conditions.without_conditions(drift, given, torch.tensor([True] + 4 * [False])))
        assert torch.allclose(mixed[:1], absent[:1])
        assert torch.allclose(mixed[1:], usual[1:])
        padded = given["text"].clone()
        padded[:, 2] = 0
        short = padded[:, [1, 2, 0]]  # the mean over tokens knows no order, and padding doesn't count
        assert torch.allclose(drift(t, x, **given | {"text": padded}), drift(t, x, **given | {"text": short}))
        assert not torch.allclose(drift(t, x, **given | {"text": padded}), usual)


def test_the_whole_way_from_a_file_to_a_finished_run(tmp_path):
    arrays(tmp_path)
    shapes = {"where": (2,), "text": (3, 4)}
    run = gftkit.pretrain(config(tmp_path, drift={"conditional": True}, condition_dropout=0.2), tmp_path / "run")
    assert run.weights()[1].condition_shapes == shapes
    assert run.drift().conditions == ("label", "where", "text")
    assert set(run.evaluate(["evaluate.metrics=[energy]"])) == {"energy", "energy_stderr", "energy_low", "energy_high"}
    config_file = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config_file["train"]["condition_dropout"] == 0.2


def test_a_number_for_each_sample_is_a_condition_too(registry, tmp_path):
    numpy.savez(tmp_path / "data.npz", x1=numpy.zeros((3, 2)), age=numpy.array([1.0, 2.0, 3.0]))
    data = registry.create("dataset", "arrays", file=tmp_path / "data.npz", conditions=["age"])
    assert data.condition_shapes == {"age": ()}
    assert data.batch(torch.tensor([2, 0])).conditions["age"].tolist() == [3, 1]


def test_parts_of_a_data_set_keep_their_conditions(registry, tmp_path):
    spec = {"name": "arrays", "file": arrays(tmp_path), "conditions": ["where"]}
    whole = Samples(registry.build("dataset", spec), "data")
    part = Samples(registry.build("dataset", {**spec, "split": "test", "classes": [1], "count": 3}), "data")
    assert part.condition_shapes == {"where": (2,)}
    batch = part.at(torch.arange(3))
    assert torch.equal(batch.x1, 3 * batch.conditions["where"])
    assert whole.at(torch.arange(N)).conditions["where"].dtype == torch.float32

    class Law:
        event_shape, range, condition_shapes = (1,), None, {"c": (1,)}

        def draw(self, n, generator):
            c = torch.rand(n, 1, generator=generator)
            return Batch(2 * c, None, None, {"c": c})

    drawn = select_subset(Law(), count=5)
    assert drawn.condition_shapes == {"c": (1,)}
    assert torch.equal(drawn.batch(torch.arange(5)).x1, 2 * drawn.batch(torch.arange(5)).conditions["c"])


@pytest.mark.parametrize(
    ("changed", "drift", "data", "message"),
    [
        ({}, {}, {"conditions": ["where", "colour"]}, "no array 'colour' for a condition. Arrays: x1, label, where"),
        ({}, {}, {"conditions": ["where"]}, "the data have no 'text' \\(they have: where\\)"),
        ({}, {"conditions": ["where"]}, {}, "doesn't take the condition 'text' of the data"),
        ({"where": numpy.zeros((3, 2))}, {}, {}, "array 'where': wanted a condition for each of 40 samples"),
        ({"where": numpy.full((N, 2), numpy.nan)}, {}, {}, "array 'where': wanted finite numbers.* in row 0"),
        ({"text": numpy.zeros((N, 1, 2, 3))}, {}, {}, "'text' has shape \\(1, 2, 3\\): wanted \\(\\) for a number"),
        ({"label": numpy.zeros(N)}, {"conditional": True}, {}, "array 'label': wanted one whole number"),
    ],
)
def test_conditions_that_do_not_fit_are_refused_before_training(tmp_path, changed, drift, data, message):
    arrays(tmp_path, **changed)
    with pytest.raises(GftkitError, match=message):
        gftkit.pretrain(config(tmp_path, drift, data), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_condition_dropout_wants_a_drift_with_a_null(tmp_path):
    arrays(tmp_path)
    run = config(tmp_path, {"conditions": []}, {"conditions": []}, condition_dropout=0.1)
    with pytest.raises(ConfigError, match=r"train.condition_dropout: the drift 'mlp' uses no condition"):
        gftkit.pretrain(run, tmp_path / "run")
    with pytest.raises(ConfigError, match="has no `null`"):
        conditions.check_null(type("Foreign", (), {"conditions": ("label",)})(), "foreign", "here")


def test_held_out_data_and_a_pretrained_run_must_agree_on_conditions(tmp_path):
    arrays(tmp_path)
    run = config(tmp_path)
    held_out = {**run["data"], "conditions": ["where"]}
    with pytest.raises(DataError, match=r"evaluate.data: wanted the conditions of the training data.*'text'"):
        gftkit.pretrain({**run, "evaluate": {**run["evaluate"], "data": held_out}}, tmp_path / "run")
    gftkit.pretrain(run, tmp_path / "run")
    arrays(tmp_path, where=numpy.zeros((N, 3)))
    after = {"data": run["data"], "train": run["train"], "evaluate": run["evaluate"]}
    after |= {"pretrained": str(tmp_path / "run"), "schedule": {"name": "zero"}}
    with pytest.raises(DataError, match=r"that the pretrained run.*'where' of shape \(2,\), got \(3,\)"):
        gftkit.finetune(after, tmp_path / "after")


class Careless:
    """A law whose batches aren't what it says."""

    event_shape, range, classes, condition_shapes = (2,), None, 2, {"c": (1,)}

    def __init__(self, **wrong):
        self.wrong = wrong

    def draw(self, n, generator):
        usual = {"x1": torch.zeros(n, 2), "label": torch.zeros(n, dtype=torch.int64), "conditions": torch.zeros(n, 1)}
        found = usual | self.wrong
        return Batch(found["x1"], found["label"], None, {self.wrong.get("name", "c"): found["conditions"]})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"conditions": torch.zeros(3, 2)}, "wanted condition 'c' of shape \\(3, 1\\)"),
        ({"conditions": torch.zeros(3, 1, dtype=torch.int64)}, "floating type"),
        (
            {"conditions": torch.tensor([[0.0], [0.0], [float("nan")]])},
            "sample 2 contains NaN or infinity, in its cond",
        ),
        ({"name": "d"}, "wanted the conditions in .*\\['c'\\].*got \\['d'\\]"),
        ({"label": torch.full((3,), 2)}, "wanted labels from 0 to 1, got 2 to 2"),
        ({"label": torch.full((3,), -1)}, "wanted labels from 0 to 1, got -1"),
        ({"label": torch.zeros(3)}, "wanted labels of shape \\(3,\\) and type int64"),
    ],
)
def test_conditions_of_a_data_set_are_checked(wrong, message):
    assert len(Samples(Careless(), "data").draw(3, torch.Generator())) == 3
    with pytest.raises(DataError, match=message):
        Samples(Careless(**wrong), "data").draw(3, torch.Generator())


def test_a_condition_has_a_name_that_a_keyword_can_have():
    named = Careless()
    named.condition_shapes = {"x": (1,)}
    with pytest.raises(DataError, match="other than t, x, label"):
        Samples(named, "data")
