"""The record and the verdict of runs that the monitor ``theory`` has watched."""

import json

from gftkit.training.verdict import verify_run

MONITOR = {"name": "theory", "batches": 16, "states": 64}


def points(run):
    return json.loads((run.folder / "theory.json").read_text())["points"]


def setting(run):
    return json.loads((run.folder / "theory.json").read_text())["setting"]


def verdict_of(run):
    ((name, verdict),) = verify_run(run)
    assert name == "theory"
    return verdict


def failed_checks(verdict):
    return {name for name, check in verdict.findings["checks"].items() if not check["holds"]}
