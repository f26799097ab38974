"""A small study that every method takes part in."""

BASE = {
    "data": {"name": "two-moons"},
    "train": {"steps": 12, "batch_size": 8, "checkpoint_every": 12},
    "evaluate": {
        "data": {"name": "two-moons", "count": 30, "seed": 7},
        "every": 4,
        "averaged": True,
        "count": 30,
        "solver": {"name": "euler", "steps": 2},
    },
}


PRETRAIN = {
    "drift": {"name": "mlp", "width": 8, "depth": 1},
    "data": {"name": "gaussian-mixture"},
    "train": {"steps": 4, "batch_size": 8, "checkpoint_every": 4},
    "evaluate": {"count": 20, "solver": {"name": "euler", "steps": 2}},
}


STUDY = {
    "metric": "energy",
    "pretrain": PRETRAIN,
    "base": BASE,
    "groups": [
        {"methods": ["plain", "exponential"], "sizes": [20], "seeds": [0, 1]},
        {"methods": ["scratch", "plain", "l2-sp", "replay", "twice"], "sizes": [20], "seeds": [0]},
        {"methods": ["plain"], "couplings": ["optimal-transport"], "sizes": [30], "seeds": [0]},
    ],
    "methods": {"twice": {"method": "plain", "set": {"train.steps": 24}}},
}


def value(rows, cell, metric):
    (found,) = (row["value"] for row in rows[cell] if row["metric"] == metric)
    return found
