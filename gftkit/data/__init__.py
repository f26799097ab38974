"""Data sets: samples, their order and pairs, their conditions and parts."""

from gftkit.data.blocks import SHUFFLE_BUFFER as SHUFFLE_BUFFER
from gftkit.data.conditions import (
    LABEL as LABEL,
    condition_names as condition_names,
    condition_nulls as condition_nulls,
    conditions_of as conditions_of,
)
from gftkit.data.description import Facts as Facts
from gftkit.data.pairing import Pairs as Pairs, Within as Within, pair as pair
from gftkit.data.prefetch import Batches as Batches, prefetch as prefetch
from gftkit.data.samples import (
    VisitOrder as VisitOrder,
    Samples as Samples,
    Scaling as Scaling,
    Source as Source,
    classes_of as classes_of,
    condition_shapes_of as condition_shapes_of,
    permuted_indices as permuted_indices,
    source_of as source_of,
)
from gftkit.data.transport import Transport as Transport
from gftkit.data.subset import Subset as Subset, select_subset as select_subset
