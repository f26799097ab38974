"""What the monitor ``memorisation`` measures, made up."""

import torch

GROUPS = 20


def measured(ratio=1.0, energy=0.1, *, common=0.0, own=0.0, seed=0):
    """A measurement: the replicates have noise that all evaluations share, and noise of their own, by their errors."""

    def noise(error, seed):
        drawn = torch.randn(GROUPS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        drawn = drawn - drawn.mean()
        return drawn * error / float(((GROUPS - 1) / GROUPS * drawn.square().sum()).sqrt())

    left_out = energy + noise(common, 0) + noise(own, 1 + seed)
    near = {"distance_ratio": ratio, "distance_ratio_stderr": 0.05}
    return {"memorisation": {**near, "energy": energy, "energy_left_out": left_out.tolist()}}


FAR = measured(2.0)
NEAR = measured(0.85)
