"""Training on several processes: as one would, also killed or sharded; and what they can't do together."""

import json
import re
import shutil
import tempfile
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands import launch
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from support import killing
from support import process_groups as several
from support.paths import ROOT

import gftkit
from gftkit.experiment.build import build
from gftkit.kernel.errors import ConfigError, DataError
from gftkit.runs import checkpoint
from gftkit.runs.resolve import resolve_config
from gftkit.storage.documents import read_json
from gftkit.storage.log import read_log
from gftkit.training.steps import Steps

STEPS = 12
EVERYTHING = {
    "data": {"name": "gaussian-mixture", "count": 40, "seed": 1},
    "coupling": {"name": "optimal-transport"},
    "schedule": {"name": "exponential"},
    "objective": {"form": "penalty", "anchor_share": "retention"},
    "train": {
        "steps": STEPS,
        "batch_size": 16,
        "pairing_batch": 32,
        "accumulate": 2,
        "checkpoint_every": 4,
        "keep_checkpoints": 3,
        "log_every": 2,
        "ema": 0.8,
        "learning_rate": 0.003,
    },
    "evaluate": {"every": 6, "count": 32, "solver": {"name": "euler", "steps": 2}},
    "monitors": ["anchor-distance"],
    "seed": 5,
}
"""A fine-tune in which all takes part that processes have to share."""
TOLERANCE = 2e-6
"""Between weights of a run on one process and on two: sums are taken in another order, in float32."""


@pytest.fixture
def tuning(pretrained):
    """Such a fine-tune of the finished run; change it freely."""
    return {"pretrained": str(pretrained), **json.loads(json.dumps(EVERYTHING))}


def state(folder, step=STEPS):
    """All tensors of a run: of its checkpoint and of its model."""
    kept = {int(path.stem.removeprefix("step-")): path for path in checkpoint.checkpoints_of(folder / "checkpoints")}
    model = {f"model.{name}": held for name, held in load_file(folder / "model.safetensors").items()}
    return {**load_file(kept[step]), **model}


def gap(one, other):
    """The largest difference between the tensors of two runs, which have the same ones."""
    one, other = state(one), state(other)
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def same(one, other):
    """Whether two runs are equal, bit for bit, log included."""
    log = [(folder / "metrics.jsonl").read_text() for folder in (one, other)]
    one, other = state(one), state(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one) and log[0] == log[1]


def check_log(one, other):
    """The same lines, but for rounding."""
    one, other = (read_log(folder / "metrics.jsonl") for folder in (one, other))
    assert [line.keys() for line in one] == [line.keys() for line in other]
    for line, twin in zip(one, other, strict=True):
        for key, value in line.items():
            assert twin[key] == (pytest.approx(value, rel=1e-3, abs=1e-4) if isinstance(value, float) else value), key


def how(folder):
    """How many processes made a run, and how they worked together."""
    found = read_json(folder / "environment.json")
    return found["processes"], found["distributed"]


@pytest.fixture(scope="module")
def undisturbed(pretrained, tmp_path_factory):
    """Gives the folder of that fine-tune, undisturbed: on "one" process, on "two", or on two "sharded"."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def found(name):
        if not (folder / name).exists():
            start(name, {"pretrained": str(pretrained), **EVERYTHING}, folder / name)
        return folder / name

    return found


def start(name, config, out, resume=False):
    """A run from beginning, or where it stopped, to its end; as ``undisturbed`` names them."""
    if name == "one":
        killing.finish(killing.start(config, out, resume))
    elif name == "two":
        several.run(several.train, config, out, resume)
    else:
        several.run(several.train_sharded, config, out, resume, **recipe())


def recipe():
    """The variables of FSDP that accelerate launch sets by the guide's recipe, for a smaller network."""
    page = ROOT / "docs/guide/devices.md"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(re.search(r'title="fsdp.yaml"\n(.*?)```', page.read_text(), re.DOTALL).group(1))
        file.flush()
        asked = launch.launch_command_parser().parse_args(["--config_file", file.name, "nothing.py"])
        found = prepare_multi_gpu_env(launch._validate_launch_command(asked)[0])
    assert found["ACCELERATE_USE_FSDP"] == "true"
    own = {name: value for name, value in found.items() if name.startswith(("FSDP_", "ACCELERATE_"))}
    return {**own, "FSDP_MIN_NUM_PARAMS": "100"}


def stop(folder, out, step):
    """A copy of a finished run as it was just after its checkpoint of a step, later lines of its log included."""
    shutil.copytree(folder, out)
    (out / "model.safetensors").unlink()
    for path in checkpoint.checkpoints_of(out / "checkpoints"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
    return out


def test_two_processes_train_as_one(undisturbed):
    """GFT with all that they share: the batch in parts, the anchor's share, pairs, averages, the log, checkpoints."""
    one, two = undisturbed("one"), undisturbed("two")
    assert how(one) == (1, "NO")
    assert how(two) == (2, "MULTI_CPU")
    assert gap(one, two) < TOLERANCE
    check_log(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("ends", [False, True])
def test_every_process_hears_the_measurements_of_the_main_one(tuning, tmp_path, ends):
    """Only the main one measures; all of them cool, and end, as it says."""
    tuning["schedule"] = {"name": "adaptive"}
    if ends:  # the pretrained samples lie in the midst of these data, and nothing is learned
        tuning["data"] = {"name": "gaussian", "event_shape": [2], "std": 5.0, "count": 60}
        tuning["schedule"]["deadline"] = 0.2
        tuning["train"]["learning_rate"] = 1e-12
        tuning["evaluate"]["every"] = 3
    last = 6 if ends else STEPS
    betas = {}
    for name in ("one", "two"):
        start(name, tuning, tmp_path / name)
        assert read_json(tmp_path / name / "summary.json")["steps"] == last
        lines = read_log(tmp_path / name / "metrics.jsonl")
        betas[name] = [line["temperature"] for line in lines if line["kind"] == "train"]
    assert betas["two"] == pytest.approx(betas["one"], rel=1e-3)


@pytest.mark.slow
def test_processes_that_keep_their_gradients_differ(undisturbed, tuning, tmp_path):
    """The wrong twin: its distance is far beyond the tolerance."""
    several.run(several.train_apart, tuning, tmp_path / "apart")
    assert gap(undisturbed("one"), tmp_path / "apart") > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("pairing", ["global", "process"])
@pytest.mark.parametrize(("rank", "moment"), [(1, ("at-a-step", 6)), (0, ("within-a-write", 2)), (0, ("in-a-line", 5))])
def test_killed_processes_are_resumed_bit_for_bit(undisturbed, tuning, tmp_path, pairing, rank, moment):
    tuning["train"] |= {"pairing": pairing, "workers": int(pairing == "process")}
    whole = undisturbed("two")
    if pairing == "process":
        whole = tmp_path / "whole"
        several.run(several.train, tuning, whole)
        assert gap(whole, undisturbed("two")) > 10 * TOLERANCE  # other pairs
    out = tmp_path / "run"
    several.killed(several.start(several.train, tuning, out, False, {rank: moment}), rank)
    assert not (out / "model.safetensors").exists()
    several.run(several.train, tuning, out, True)
    assert same(whole, out)


@pytest.mark.slow
def test_six_kills_of_all_processes_at_random_moments(undisturbed, tuning, tmp_path):
    whole, waits, kills = undisturbed("two"), killing.moments(7, 4.0), 0
    for number in range(20):
        out = tmp_path / str(number)
        while not (out / "model.safetensors").exists():
            begun = several.start(several.train, tuning, out, (out / "config.yaml").is_file())
            if kills >= 6:
                several.finish(begun)
            else:
                kills += several.kill(begun, next(waits))
        assert same(whole, out)
        if kills >= 6:
            return


# Sharded weights


@pytest.mark.slow
def test_sharded_weights_train_as_whole_ones(undisturbed):
    """By accelerate's own FSDP2, over gloo: the same files as of one process and of two."""
    sharded = undisturbed("sharded")
    assert how(sharded) == (2, "FSDP")
    for other in ("one", "two"):
        assert gap(undisturbed(other), sharded) < TOLERANCE
        check_log(undisturbed(other), sharded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("sharded", "sharded"),
        ("sharded", "one"),
        ("two", "sharded"),
        ("one", "sharded"),
        ("one", "two"),
        ("two", "one"),
    ],
)
def test_a_checkpoint_serves_any_number_of_processes_sharded_or_not(undisturbed, tuning, tmp_path, before, after):
    out = stop(undisturbed(before), tmp_path / "run", 4)
    start(after, tuning, out, resume=True)
    assert gap(undisturbed(before), out) < TOLERANCE
    check_log(undisturbed(before), out)
    assert before != after or same(undisturbed(before), out)


@pytest.mark.slow
def test_scaled_losses_of_sharded_weights(tuning, tmp_path):
    """float16: losses are scaled, gradients unscaled and looked at where they lie, and the scale is kept."""
    tuning["train"] |= {"precision": "float16"}
    for name in ("two", "sharded"):
        start(name, tuning, tmp_path / name)
    assert gap(tmp_path / "two", tmp_path / "sharded") < 2e-3  # of float16's eleven bits
    same = stop(tmp_path / "sharded", tmp_path / "run", 8)
    start("sharded", tuning, same, resume=True)
    assert gap(tmp_path / "sharded", same) == 0


@pytest.mark.slow
def test_a_network_with_weights_that_its_output_does_not_use(tmp_path):
    """DDP would wait for their gradients: without the look at the network the second step fails."""
    config = {
        "drift": {"name": "module", "target": "support.process_groups:HalfIdle", "convention": {"call": "x, t"}},
        **{key: EVERYTHING[key] for key in ("data", "train", "evaluate", "seed")},
    }
    for processes in (1, 2):
        several.run(several.train_with, None, config, tmp_path / str(processes), processes=processes)
    assert gap(tmp_path / "1", tmp_path / "2") < TOLERANCE
    several.finish(several.start(several.train_with, False, config, tmp_path / "wrong"), 1)
    assert not (tmp_path / "wrong" / "model.safetensors").exists()


# What starts processes


@pytest.mark.slow
def test_torchrun_and_the_command_line(undisturbed, tuning, tmp_path, write_config, process):
    """The bits of the other tests' way to start two processes, and one answer."""
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "gftkit")
    done = process("finetune", write_config(tuning), "--out", "run", "--device", "cpu", "--json", start=start)
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == STEPS
    assert how(tmp_path / "run") == (2, "MULTI_CPU")
    assert same(undisturbed("two"), tmp_path / "run")
    assert done.err.count("differs from the pretrained run's") == 1


@pytest.mark.slow
def test_accelerate_launch_that_starts_one_process_is_warned_about(pretrain_config, tmp_path, write_config, process):
    start = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "gftkit")
    done = process("pretrain", write_config(pretrain_config), "--out", "run", start=start)
    assert done.code == 0, done.err
    assert how(tmp_path / "run") == (1, "NO")
    assert "accelerate launch started one process" in done.err


def test_sharding_that_would_not_happen_is_refused(tuning, tmp_path, registry, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"accelerate would run NO on 1 process\(es\) of cpu"):
        gftkit.finetune(tuning, tmp_path / "run", registry=registry, device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1", "2"])
def test_sharding_on_cpus_is_refused_by_every_process(tuning, tmp_path, version):
    message = r"accelerate would run MULTI_CPU on 2 process\(es\) of cpu"
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": version}
    several.run(several.refused, [tuning] * 2, [tmp_path / "run"] * 2, message, **environment)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("count", "size", "message"),
    [
        (40, 15, "15 pairs can't be divided evenly between 3 processes with 2 parts .* multiple of 6"),
        (2, 18, "one sample for each of 3 processes, got 2. Start at most 2"),
    ],
)
def test_batches_that_processes_cannot_share_are_refused(tuning, tmp_path, registry, count, size, message):
    tuning["data"]["count"] = count
    tuning["evaluate"]["metrics"] = []
    tuning["train"] |= {"batch_size": size, "pairing_batch": size}
    experiment = build(resolve_config(tuning, "finetune", registry)[0], registry)
    three = SimpleNamespace(num_processes=3, process_index=0, device=torch.device("cpu"))
    with pytest.raises((ConfigError, DataError), match=message):
        Steps(experiment, three)


@pytest.mark.slow
def test_processes_that_see_different_things_are_refused(undisturbed, tuning, tmp_path):
    other = {**tuning, "data": {**tuning["data"], "count": 30}}
    outs = [tmp_path / "0", tmp_path / "1"]
    several.run(several.refused, [tuning, other], outs, r"differ in the configuration: .*'count': 40.*'count': 30")
    for out, step in zip(outs, (8, 4), strict=True):
        stop(undisturbed("two"), out, step)
    several.run(several.refused, [tuning] * 2, outs, r"the step to resume from.* 0 has 8, process 1 has 4", True)
