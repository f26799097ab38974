"""What a command resolves, builds, reads and hashes, it does once."""

import hashlib
import inspect
import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from gftkit.kernel.options import plain
from gftkit.kernel.registry import Registry, Resolved
from gftkit.storage import tensors

SHORT = {"steps": 4, "batch_size": 8, "checkpoint_every": 2}
MEASURE = {"every": 4, "count": 32, "solver": {"name": "euler", "steps": 2}}


class Work:
    """Counts of what is done: resolutions, constructions, reads of tensors, bytes that are hashed."""

    def __init__(self, monkeypatch):
        self.resolved, self.built, self.read, self.hashed = Counter(), Counter(), Counter(), Counter()
        self.contents = Counter()
        self._count_resolutions(monkeypatch)
        self._count_constructions(monkeypatch)
        self._count_reads(monkeypatch)
        self._count_hashes(monkeypatch)

    def repeated(self):
        """What was done twice, by sort. Two files may hold the same tensor: each hashes it once."""
        hashed = Counter({content: times - self.contents[content] + 1 for content, times in self.hashed.items()})
        sorts = {"resolved": self.resolved, "built": self.built, "read": self.read, "hashed": hashed}
        return {f"{sort} {what}" for sort, counts in sorts.items() for what, times in counts.items() if times > 1}

    def _count_resolutions(self, monkeypatch):
        resolve = Registry.resolve

        def counted(registry, kind, spec, where="", base=None):
            if not isinstance(spec, Resolved):
                self.resolved[kind, where or kind, written(spec)] += 1
            return resolve(registry, kind, spec, where, base)

        monkeypatch.setattr(Registry, "resolve", counted)

    def _count_constructions(self, monkeypatch):
        build = Registry.build

        def counted(registry, kind, spec, where="", base=None, **supplied):
            self.built[kind, where or kind, written(spec)] += 1
            return build(registry, kind, spec, where, base, **supplied)

        monkeypatch.setattr(Registry, "build", counted)

    def _count_reads(self, monkeypatch):
        safe_open = tensors.safe_open

        work = self

        class Counted:
            def __init__(self, path, framework):
                self.path, self.file = path, safe_open(path, framework=framework)

            def __enter__(self):
                self.open = self.file.__enter__()
                return self

            def __exit__(self, *error):
                return self.file.__exit__(*error)

            def __getattr__(self, name):
                return getattr(self.open, name)

            def get_tensor(self, name):
                work.read[str(self.path), name] += 1
                tensor = self.open.get_tensor(name)
                if tensor.numel() > 1:
                    work.contents[hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()] += 1
                return tensor

        monkeypatch.setattr(tensors, "safe_open", Counted)

    def _count_hashes(self, monkeypatch):
        """Of tensors that were read from a file; what is written gets a digest of its own."""

        work = self

        class Counted:
            def __init__(self, *start):
                self.sum = hashlib.sha256(*start)

            def update(self, values):
                content = hashlib.sha256(values).hexdigest()
                if content in work.contents and "write_tensors" not in (frame.function for frame in inspect.stack(0)):
                    work.hashed[content] += 1
                self.sum.update(values)

            def hexdigest(self):
                return self.sum.hexdigest()

        monkeypatch.setattr(tensors, "hashlib", SimpleNamespace(sha256=Counted))


def written(spec):
    return json.dumps(plain(spec), sort_keys=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pretrained run, a fine-tune of it, one with adapters, and a distillation."""
    import gftkit

    folder = tmp_path_factory.mktemp("runs")
    drift = {"name": "mlp", "width": 16, "depth": 2}
    gftkit.pretrain(
        {"drift": drift, "data": {"name": "two-moons"}, "train": SHORT, "evaluate": MEASURE}, folder / "first"
    )
    tune = {"pretrained": str(folder / "first"), "data": {"name": "gaussian-mixture", "count": 50}, "train": SHORT}
    tune |= {"schedule": {"name": "constant"}, "evaluate": MEASURE}
    gftkit.finetune(tune, folder / "tuned")
    gftkit.finetune({**tune, "adapters": {"rank": 2}}, folder / "adapted")
    gftkit.distill({"pretrained": str(folder / "tuned"), "train": SHORT}, folder / "student")
    return folder


TUNE = """
pretrained: {runs}/first
data: {{name: gaussian-mixture, count: 50}}
schedule: {{name: {schedule}}}
train: {{steps: 4, batch_size: 8, checkpoint_every: 2}}
evaluate:
  {{every: 4, count: 32, data: {{name: gaussian-mixture, count: 50, seed: 1}}, solver: {{name: euler, steps: 2}}}}
"""
PRETRAIN = """
drift: {{name: mlp, width: 16, depth: 2}}
data: {{name: two-moons}}
train: {{steps: 4, batch_size: 8, checkpoint_every: 2}}
evaluate: {{every: 4, count: 32, solver: {{name: euler, steps: 2}}}}
"""
CONFIGS = {
    "pretrain": PRETRAIN,
    "finetune": TUNE.replace("{schedule}", "exponential"),
    "adaptive": TUNE.replace("{schedule}", "adaptive"),
    "external": TUNE.replace("{schedule}", "linear") + "anchor: {{name: external, pretrained: {runs}/student}}\n",
    "adapters": TUNE.replace("{schedule}", "linear") + "adapters: {{rank: 2}}\n",
    "l2-sp": TUNE.replace("{schedule}", "zero") + "objective: {{l2_sp: 0.1}}\n",
    "distill": "pretrained: {runs}/tuned\ntrain: {{steps: 4, batch_size: 8, checkpoint_every: 2}}\n",
}
COMMANDS = {
    **{name: [name, "CONFIG", "--out", "new"] for name in ("pretrain", "finetune", "distill")},
    **{name: ["finetune", "CONFIG", "--out", "new"] for name in ("adaptive", "adapters", "l2-sp")},
    "sample": ["sample", "{runs}/tuned", "--count", 70, "--out", "samples.npz"],
    "sample-raw": ["sample", "{runs}/tuned", "--count", 70, "--out", "samples.npz", "--weights", "raw"],
    "sample-blended": ["sample", "{runs}/tuned", "--count", 70, "--out", "samples.npz", "--temperature", 1],
    "sample-guided": ["sample", "{runs}/tuned", "--count", 70, "--out", "samples.npz", "--retention", -0.5],
    "sample-adapters": ["sample", "{runs}/adapted", "--count", 70, "--out", "samples.npz", "--temperature", 1],
    "sample-student": ["sample", "{runs}/student", "--count", 70, "--out", "samples.npz"],
    "evaluate": ["evaluate", "{runs}/tuned", "--json"],
    "evaluate-blended": ["evaluate", "{runs}/tuned", "--json", "--temperature", 0.5],
    "likelihood": ["likelihood", "{runs}/tuned", "--count", 10, "--solver", "{{name: rk4, steps: 2}}"],
    "likelihood-guided": [
        "likelihood",
        "{runs}/tuned",
        "--count",
        10,
        "--solver",
        "{{name: rk4, steps: 2}}",
        "--retention",
        -0.5,
    ],
    "fit-grid": ["fit-grid", "{runs}/tuned", "--steps", 2, "--count", 16, "--fine-steps", 10, "--out", "grid.yaml"],
    "fit-profile": ["fit-profile", "{runs}/tuned", "--count", 40, "--out", "profile.yaml"],
    "fit-profile-held-out": [
        *["fit-profile", "{runs}/tuned", "--count", 40, "--out", "profile.yaml"],
        *["--data", "{{name: gaussian-mixture, count: 80, seed: 2}}"],
    ],
    "geometry": ["geometry", "{runs}/tuned", "--count", 20, "--out", "geometry"],
    "export": ["export", "{runs}/tuned", "--out", "exported"],
    "export-adapter": ["export", "{runs}/adapted", "--format", "peft", "--out", "exported"],
}


ALLOWED = {
    "sample-blended": ("built ('drift'",),  # the trained network and the pretrained one
    "sample-guided": ("built ('drift'",),
    "likelihood-guided": ("built ('drift'",),
    "fit-grid": ("built ('solver'", "resolved ('solver'"),  # solvers are measured, not configured
    "fit-profile": ("built ('drift'",),  # the trained network and the pretrained one
    "fit-profile-held-out": ("built ('drift'", "built ('profile'", "resolved ('profile'"),  # profiles are compared
    "geometry": ("built ('solver'", "resolved ('solver'"),
    "evaluate-blended": ("built ('drift'",),
    "sample-raw": ("hashed",),  # a checkpoint's digest is of more than the weights
}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_does_nothing_twice(name, runs, gft, monkeypatch, tmp_path):
    if name in CONFIGS:
        (tmp_path / "CONFIG").write_text(CONFIGS[name].format(runs=runs))
    work = Work(monkeypatch)
    done = gft(*(str(word).format(runs=runs) for word in COMMANDS[name]))
    assert done.code == 0, done.err
    assert {what for what in work.repeated() if not what.startswith(ALLOWED.get(name, ()))} == set()
    assert work.built or work.read


def test_work_that_is_done_twice_is_seen(runs, registry, monkeypatch):
    work = Work(monkeypatch)
    spec = {"name": "linear"}
    assert isinstance(registry.resolve("path", spec), Resolved)
    registry.build("path", registry.resolve("path", spec))
    registry.build("path", registry.resolve("path", spec))
    file = runs / "first/model.safetensors"
    weights, _ = tensors.read_tensors(file)
    assert {words.split(" ")[0] for words in work.repeated()} == {"resolved", "built"}
    tensors.digest(weights)
    assert {words.split(" ")[0] for words in work.repeated()} == {"resolved", "built", "hashed"}
    tensors.read_tensors(file)
    sorts = {words.split(" ")[0] for words in work.repeated()}
    assert sorts == {"resolved", "built", "read", "hashed"}
