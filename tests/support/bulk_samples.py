"""What the tests of sampling in bulk share: how many samples, tolerances, and what a file holds."""

import numpy as np

COUNT = 150
"""Two whole blocks of 64, and a part of a third."""


ROUND_OFF = 1e-5
"""What a sample may differ by in float32 where its batch does."""


NOISY = {"name": "euler-maruyama", "steps": 3, "diffusion": {"name": "constant"}}


def samples(path):
    return np.load(path)["samples"]


def apart(one, other):
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())
