"""What a run should have told its trackers, and what its TensorBoard files hold."""

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gftkit.storage.log import read_log


def logged(folder):
    """Every number in metrics.jsonl by name and step, how often it should have been logged (once), and its value."""
    found = {}
    for line in read_log(folder / "metrics.jsonl"):
        head = {"evaluation": {"raw": "evaluation", "ema": "evaluation/ema"}.get(line.get("weights"))}
        head = head.get(line["kind"]) or "/".join(filter(None, [line["kind"], line.get("monitor")]))
        for key, value in line.items():
            if key not in ("step", "kind") and isinstance(value, float):
                found[f"{head}/{key}", line["step"]] = [value]
    return found


def events(folder):
    """The same as TensorBoard reads it, from the run's event files."""
    reader = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()
    found = {}
    for name in reader.Tags()["scalars"]:
        for event in reader.Scalars(name):
            found.setdefault((name, event.step), []).append(event.value)
    return found, {name: [event.step for event in reader.Images(name)] for name in reader.Tags()["images"]}


def agree(one, other):
    """Event files hold float32."""
    return one.keys() == other.keys() and all(np.allclose(one[key], other[key], rtol=1e-6) for key in one)


def settle(run):
    """Make the event files of a run that was stopped older than any other.

    They are read in the order of their names, which hold the second; in a test more than one may fall into it.
    """
    paths = sorted((run / "tensorboard").glob("events*"))
    past = [path for path in paths if ".tfevents.0000" in path.name]
    for index, path in enumerate((path for path in paths if path not in past), len(past)):
        path.rename(path.with_name(f"events.out.tfevents.{index:010d}.past"))
