"""Every registered data set keeps its contract, whole and in part."""

import ast
import functools
import importlib
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_files import encoded, pictures, tar, whole
from support.wilds_folders import MADE as WILDS
from torch.utils.data import DataLoader

import gftkit
from gftkit.data.subset import Subset, select_subset
from gftkit.kernel.contracts import Batch, Dataset, Sampler
from gftkit.kernel.errors import DataError

MINIMAL = {
    "arrays": lambda folder: {"file": folder / "labelled.npz"},
    "camelyon17": lambda folder: {"folder": folder / "camelyon17"},
    "digits": lambda folder: {},
    "fmow": lambda folder: {"folder": folder / "fmow"},
    "fold": lambda folder: {"data": {"name": "gaussian-mixture", "count": 60}, "fold": 1, "folds": 3},
    "gaussian": lambda folder: {"event_shape": (2, 3)},
    "gaussian-mixture": lambda folder: {},
    "generated-pairs": lambda folder: {"run": folder / "run", "size": 70},
    "huggingface": lambda folder: {"files": folder / "rows"},
    "image-folder": lambda folder: {"folder": folder / "classes"},
    "latents": lambda folder: {
        "data": {"name": "arrays", "file": folder / "labelled.npz"},
        "vae": folder / "vae.json",
    },
    "mnist5k": lambda folder: {"size": 8},
    "random-fields": lambda folder: {},
    "rxrx1": lambda folder: {"folder": folder / "rxrx1"},
    "replay": lambda folder: {
        "target": {"name": "gaussian-mixture", "count": 60},
        "run": folder / "run",
        "share": 0.25,
        "size": 30,
    },
    "shards": lambda folder: {"files": folder / "part-{0..1}.tar"},
    "signals": lambda folder: {},
    "two-moons": lambda folder: {},
}
"""The fewest options that make each data set."""

LAWS = ("gaussian", "gaussian-mixture", "random-fields", "signals", "two-moons")
"""Those that are drawn from."""

SPLIT = dict.fromkeys(WILDS, "part")
"""What the kernel's option ``split`` is called by those that have another of that name."""

MANY = ("fmow", "rxrx1")
"""Those with classes of which a small set has some only."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files for the data sets that read some."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    run = {"drift": {"name": "mlp", "width": 8, "depth": 1, "conditional": True}, "data": {"name": "gaussian-mixture"}}
    run |= {"train": {"steps": 2, "batch_size": 8}, "evaluate": {"count": 20, "solver": {"name": "heun", "steps": 2}}}
    gftkit.pretrain(run, folder / "run", device="cpu")
    (folder / "vae.json").write_text('{"scaling_factor": 0.5, "shift_factor": 0.1}')
    np.savez(folder / "labelled.npz", x1=generator.normal(size=(31, 2, 3)), label=np.arange(31) % 3)
    pictures(folder / "classes")
    made = {"x": generator.normal(size=(29, 4)).tolist(), "label": [row % 3 for row in range(29)]}
    datasets.Dataset.from_dict(made).save_to_disk(str(folder / "rows"))
    for part, count in enumerate((12, 17)):
        members = {}
        for number in range(count):
            members[f"{number:03}.png"] = encoded(generator.integers(256, size=(5, 4, 3), dtype=np.uint8))
            members[f"{number:03}.cls"] = str(number % 3).encode()
        tar(folder / f"part-{part}.tar", members)
    for name, make in WILDS.items():
        make(folder / name)
    return folder


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """A cache folder of these tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GFTKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(registry, files):
    """Creates a data set from its minimal options and more."""
    return lambda name, **more: registry.create("dataset", name, **MINIMAL[name](files), **more)


@pytest.fixture(scope="module")
def seen(made):
    """A data set that can be indexed, and all of it, made once."""

    @functools.cache
    def once(name):
        dataset = view(made, name)
        return dataset, whole(dataset)

    return once


def split(name, of):
    """The option for one of the kernel's splits."""
    return {SPLIT.get(name, "split"): of}


def view(made, name, **more):
    """A data set that can be indexed, also from a law."""
    return made(name, **({"count": 64} | more if name in LAWS else more))


every = pytest.mark.parametrize("name", sorted(MINIMAL))
every_law = pytest.mark.parametrize("name", LAWS)
every_finite_one = pytest.mark.parametrize("name", sorted(set(MINIMAL) - set(LAWS)))


# Contract


def test_every_built_in_data_set_is_tested(registry):
    names = registry.names("dataset")
    own = [name for name in names if registry.component("dataset", name).origin.plugin == "gftkit-datasets"]
    assert set(own) == set(MINIMAL)


@every
def test_a_batch_keeps_the_contract(seen, name):
    dataset, batch = seen(name)
    assert batch.x1.shape == (len(dataset), *dataset.event_shape)
    assert batch.x1.dtype is torch.float32
    assert batch.x1.isfinite().all()
    if dataset.range is not None:
        low, high = dataset.range
        assert low <= batch.x1.min() < batch.x1.max() <= high
        assert batch.x1.max() - batch.x1.min() > 0.9 * (high - low)
    if batch.label is None:
        assert dataset.labels is None
    else:
        assert batch.label.dtype is torch.int64
        assert torch.equal(batch.label, dataset.labels)
        assert set(batch.label.tolist()) == (set(range(2)) if name in MANY else set(range(dataset.classes)))


@every
def test_a_whole_data_set_describes_itself(made, name):
    dataset = made(name)
    assert isinstance(dataset, Sampler if name in LAWS else Dataset)
    assert not isinstance(dataset, Dataset if name in LAWS else Sampler)
    assert isinstance(dataset.event_shape, tuple)
    assert all(type(side) is int for side in dataset.event_shape)
    assert hasattr(dataset, "range")


@every
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_batch_comes_in_the_order_asked_for(seen, name, data):
    dataset, everything = seen(name)
    indices = data.draw(st.lists(st.integers(0, len(dataset) - 1), max_size=8))
    batch = dataset.batch(torch.tensor(indices, dtype=torch.int64))
    assert batch.x1.shape == (len(indices), *dataset.event_shape)
    assert torch.equal(batch.x1, everything.x1[indices])
    if batch.label is not None:
        assert torch.equal(batch.label, everything.label[indices])


@every
def test_a_data_set_made_twice_is_the_same(seen, made, name):
    first, second = seen(name)[1], whole(view(made, name))
    assert torch.equal(first.x1, second.x1)
    assert first.label is None or torch.equal(first.label, second.label)


@every_law
def test_a_law_depends_on_the_generator_alone(made, name):
    law = made(name)
    torch.manual_seed(1)
    first = law.draw(5, torch.Generator().manual_seed(7))
    torch.manual_seed(2)
    assert torch.equal(first.x1, law.draw(5, torch.Generator().manual_seed(7)).x1)
    assert not torch.equal(first.x1, law.draw(5, torch.Generator().manual_seed(8)).x1)
    assert law.draw(0, torch.Generator()).x1.shape == (0, *law.event_shape)


# Subsets


@every_law
def test_train_and_test_of_a_law_share_no_draw(made, name):
    train, test = (whole(made(name, count=64, split=split)).x1.flatten(1) for split in ("train", "test"))
    assert not (train[:, None] == test).all(2).any()


@every_finite_one
def test_train_and_test_are_disjoint_and_cover_everything(made, name):
    train, test = made(name, **split(name, "train")), made(name, **split(name, "test"))
    assert isinstance(train, Subset)
    assert sorted([*train.indices.tolist(), *test.indices.tolist()]) == list(range(len(made(name))))
    assert len(test) == round(len(made(name)) / 3)


@every
def test_the_same_samples_are_chosen_each_time(made, name):
    one, again = (whole(made(name, count=9, seed=4, **split(name, "train"))).x1 for _ in range(2))
    other = whole(made(name, count=9, seed=5, **split(name, "train"))).x1
    assert len(one) == 9
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@every_finite_one
def test_some_samples_of_a_split_stay_in_it(made, name):
    train = chosen(made(name, **split(name, "train")))
    assert chosen(made(name, count=9, seed=3, **split(name, "train"))) < train


@every_finite_one
def test_skip_leaves_out_what_a_smaller_count_chooses(made, name):
    every = chosen(made(name, count=9, seed=3))
    first, rest = chosen(made(name, count=5, seed=3)), chosen(made(name, count=4, skip=5, seed=3))
    assert not first & rest
    assert first | rest == every
    size = len(made(name))
    with pytest.raises(DataError, match=r"count: 2 samples wanted, 1 available"):
        made(name, count=2, skip=size - 1)
    with pytest.raises(DataError, match="requires `count`"):
        made(name, skip=1)


@every_law
def test_a_law_has_no_order_to_skip_in(made, name):
    with pytest.raises(DataError, match="Use another `seed`"):
        made(name, count=9, skip=1)


def chosen(part):
    """Which samples of the whole set a part has, or a part of a part."""
    if not isinstance(part.dataset, Subset):
        return set(part.indices.tolist())
    return set(part.dataset.indices[part.indices].tolist())


@every_law
def test_a_law_gives_any_number_of_samples(made, name):
    assert len(made(name, count=6000)) == 6000


@every_finite_one
def test_more_samples_than_there_are_is_refused(seen, made, name):
    size = len(seen(name)[0])
    with pytest.raises(DataError, match=f"count: {size + 1} samples wanted, {size} available. Lower `count`"):
        made(name, count=size + 1)


@every
def test_classes_keep_only_those_labels(seen, made, name):
    dataset = seen(name)[0]
    if dataset.labels is None:
        with pytest.raises(DataError, match=r"no labels to choose by\. Leave `classes` out"):
            view(made, name, classes=[0])
        return
    chosen = view(made, name, classes=[1, 0])
    assert set(whole(chosen).label.tolist()) == {0, 1}
    assert chosen.classes == dataset.classes
    if name not in LAWS:
        assert len(chosen) == int((dataset.labels < 2).sum())
    with pytest.raises(DataError, match=f"classes: wanted numbers from 0 to {dataset.classes - 1}, got"):
        view(made, name, classes=[0, dataset.classes])


@every_law
@pytest.mark.parametrize("part", [{"split": "test"}, {"seed": 3}])
def test_a_part_of_a_law_wants_a_count(made, name, part):
    with pytest.raises(DataError, match="Set `count`"):
        made(name, **part)


def test_a_law_that_gives_partners_keeps_them():
    class Paired:
        event_shape, range = (1,), None

        def draw(self, n, generator):
            x0 = torch.randn(n, 1, generator=generator)
            return Batch(2 * x0, None, x0)

    batch = whole(select_subset(Paired(), count=5))
    assert torch.equal(batch.x1, 2 * batch.x0)


@every_finite_one
def test_a_copy_for_another_process_gives_the_same(seen, name):
    dataset, everything = seen(name)
    copy = pickle.loads(pickle.dumps(dataset))
    indices = torch.tensor([len(dataset) - 1, 0])
    assert torch.equal(copy.batch(indices).x1, everything.x1[indices])


class Batches(torch.utils.data.Dataset):
    """The samples of a data set, as worker processes read them."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset.batch(torch.tensor([index])).x1[0]


@pytest.mark.parametrize("name", ["arrays", "camelyon17", "huggingface", "image-folder", "shards"])
def test_workers_read_the_same(seen, name):
    """Forked after files were opened: reading by position shares nothing."""
    dataset, everything = seen(name)
    loader = DataLoader(Batches(dataset), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.stack(list(loader)), everything.x1)
    assert torch.equal(whole(dataset).x1, everything.x1)


def test_nothing_heavy_is_imported_with_the_plugin():
    """At the top of each module, outside ``if TYPE_CHECKING``."""
    package = Path(importlib.import_module("gftkit_plugins.datasets").__file__).parent
    for file in package.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"sklearn", "mlxtend", "PIL", "datasets", "pyarrow"}, (
                file
            )
