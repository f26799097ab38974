"""Processes for the cells of a study: each job is done once, a process that dies costs one job."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter

import pytest
import yaml
from support.studies import PRETRAIN, STUDY

from gftkit.study import workers
from gftkit.study.worker import Job
from gftkit.study.workers import environment, run_all


def jobs(count):
    return [Job("finetune", {}, f"run-{index}", "cpu") for index in range(count)]


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Puts a shell script in the place of the processes' Python: it is given a job a line, and answers."""

    def make(answer):
        script = tmp_path / "worker"
        script.write_text(f"#!/bin/sh\nwhile read -r line; do\n{answer}\ndone\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(script))

    return make


def test_every_job_is_done_once_by_as_many_processes_as_were_asked_for(worker, tmp_path):
    worker("echo '\"\"'")
    done = list(run_all(jobs(7), 3, tmp_path, "cpu"))
    assert Counter(job.out for job, _ in done) == {f"run-{index}": 1 for index in range(7)}
    assert {error for _, error in done} == {""}


def test_errors_of_a_worker_are_reported(worker, tmp_path):
    worker('case "$line" in *run-1*) echo \'"too hot"\';; *) echo \'""\';; esac')
    assert {job.out: error for job, error in run_all(jobs(3), 2, tmp_path, "cpu")} == {
        "run-0": "",
        "run-1": "too hot",
        "run-2": "",
    }


def test_a_process_that_dies_costs_its_own_job_alone(worker, tmp_path):
    worker('case "$line" in *run-1*) kill -9 $$;; *run-2*) exit 3;; *) echo \'""\';; esac')
    told = {job.out: error for job, error in run_all(jobs(5), 2, tmp_path, "cpu")}
    assert [name for name, error in told.items() if error == ""] == ["run-0", "run-3", "run-4"] or set(told) == {
        f"run-{index}" for index in range(5)
    }
    assert "killed, perhaps because the memory ran out" in told["run-1"]
    assert "ended with code 3" in told["run-2"]
    assert told["run-0"] == told["run-3"] == told["run-4"] == ""


def test_processes_end_with_the_study(worker, tmp_path):
    worker(f'echo $$ > {tmp_path}/pid-$$; case "$line" in *run-0*) echo \'""\';; *) sleep 60; echo \'""\';; esac')
    running = run_all(jobs(3), 2, tmp_path, "cpu")
    next(running)
    running.close()
    for file in tmp_path.glob("pid-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.name.removeprefix("pid-")), 0)


def test_gpus_and_threads_are_dealt_out(monkeypatch):
    monkeypatch.setattr(workers, "gpus", lambda: ["2", "5"])
    monkeypatch.setattr(workers, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    dealt = [environment(index, 4, "auto") for index in range(4)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in dealt] == ["2", "5", "2", "5"]
    assert {one["OMP_NUM_THREADS"] for one in dealt} == {"2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert environment(0, 4, "cpu")["CUDA_VISIBLE_DEVICES"] == "3"  # as it was
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environment(0, 2, "cpu")["OMP_NUM_THREADS"] == "1"  # the user's own wins


@pytest.mark.slow
def test_a_study_by_two_processes_has_the_runs_of_one(tmp_path, process):
    groups = [{"methods": ["plain", "exponential"], "sizes": [20], "seeds": [0, 1]}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**STUDY, "groups": groups, "methods": {}}))
    rows = []
    for count in (1, 2):
        done = process("compare", "study.yaml", "--out", f"by-{count}", "--workers", count, "--json")
        assert done.code == 0, done.err
        written = json.loads((tmp_path / f"by-{count}/results.json").read_text())
        rows.append([row for row in written if not row["metric"].startswith("seconds")])
    assert rows[0] == rows[1]
    assert "run-" not in (tmp_path / "by-2/logs/worker-0.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_study_that_is_told_to_end_ends_its_processes(tmp_path, ending):
    long = {**STUDY["base"], "train": {"steps": 10**7, "batch_size": 8, "checkpoint_every": 1000}}
    study = {**STUDY, "base": long, "groups": [{"methods": ["plain"], "sizes": [20], "seeds": [0, 1]}], "methods": {}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, "pretrain": PRETRAIN}))
    command = [sys.executable, "-m", "gftkit", "compare", "study.yaml", "--out", "out", "--workers", "2"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    began = [tmp_path / f"out/cells/plain/independent/20/{seed}/config.yaml" for seed in (0, 1)]
    until = time.monotonic() + 120
    while not all(path.exists() for path in began) and time.monotonic() < until:
        time.sleep(0.2)
    running.send_signal(ending)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "Run the same command again to continue the study" in said
    ended = [(path.parent / "metrics.jsonl").stat().st_size for path in began]
    time.sleep(3)
    assert ended == [(path.parent / "metrics.jsonl").stat().st_size for path in began]  # nobody goes on with them
