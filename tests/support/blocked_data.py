"""Data sets that lie in blocks, and the samples that an order takes of them."""

from hypothesis import strategies as st

from gftkit.kernel.contracts import Batch

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)


class Stretched:
    """Samples 0, 1, 2, ... in blocks of these sizes."""

    event_shape, range = (1,), None

    def __init__(self, *blocks):
        self.blocks = blocks

    def __len__(self):
        return sum(self.blocks)

    def batch(self, indices):
        return Batch(indices.float()[:, None])


class Whole(Stretched):
    """The same without blocks."""

    def __init__(self, size):
        self.size, self.blocks = size, None

    def __len__(self):
        return self.size


def taken(order, first, n):
    return order.take(first, n).x1[:, 0].long()
