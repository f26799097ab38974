"""One of K disjoint parts of a data set, or all but it: for cross-fitting."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from gftkit.data import Subset
from gftkit.kernel import Dataset


class Fold(Subset):
    """One of K parts of a data set, or everything but it.

    The parts are random, disjoint, and of equal size up to one sample; they depend on the number of samples and of
    parts only. `gft fit-profile --folds` trains on the rest and measures on the part.

    Args:
        data: a finite set; its own ``count`` and ``split`` come first.
        fold: which part, from 0.
        folds: K, at most the number of samples.
        part: "rest" for everything but the part, "fold" for the part.

    Raises:
        ValueError: for a set without end, and a part that isn't there.

    Example:
        >>> import gftkit
        >>> options = {"data": {"name": "two-moons", "count": 10}, "fold": 0, "folds": 3}
        >>> part, rest = (gftkit.load().create("dataset", "fold", **options, part=part) for part in ("fold", "rest"))
        >>> len(part), len(rest), sorted([*part.indices.tolist(), *rest.indices.tolist()])
        (4, 6, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    def __init__(
        self,
        data: Dataset,
        fold: Annotated[int, Field(ge=0)],
        folds: Annotated[int, Field(ge=2)],
        part: Literal["rest", "fold"] = "rest",
    ) -> None:
        if not isinstance(data, Dataset):
            raise ValueError("data: wanted a finite set, and a synthetic one is infinite. Set its `count`.")
        if not fold < folds <= len(data):
            raise ValueError(
                f"wanted a fold from 0 to {folds - 1}, and at most as many folds as the {len(data)} samples, got fold "
                f"{fold} of {folds}."
            )
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        mine = torch.arange(len(data)) % folds == fold
        # Ascending, as a set in blocks requires.
        super().__init__(data, order[mine if part == "fold" else ~mine].sort().values)
