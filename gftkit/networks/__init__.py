"""Networks: adapters, anchors, averages, precision, guidance, flow maps, and foreign ones with their conventions."""

from gftkit.networks.adapters import AdaptedDrift as AdaptedDrift, Adapters as Adapters
from gftkit.networks.agreement import own_label_dropout as own_label_dropout
from gftkit.networks.anchor import (
    AdaptersOffAnchor as AdaptersOffAnchor,
    Anchor as Anchor,
    ExternalAnchor as ExternalAnchor,
    FrozenAnchor as FrozenAnchor,
    drift_hash as drift_hash,
    short_hash as short_hash,
)
from gftkit.networks.averages import Averages as Averages
from gftkit.networks.convention import (
    Convention as Convention,
    DIFFUSERS_TIMES as DIFFUSERS_TIMES,
    PRESETS as PRESETS,
)
from gftkit.networks.flow_map import (
    check_jumps as check_jumps,
    is_flow_map as is_flow_map,
    jump as jump,
    lagrangian_loss as lagrangian_loss,
)
from gftkit.networks.foreign import ForeignDrift as ForeignDrift, check_score as check_score, own_network as own_network
from gftkit.networks.foreign_weights import (
    Candidate as Candidate,
    fitting_in as fitting_in,
    load_foreign_weights as load_foreign_weights,
)
from gftkit.networks.guidance import check_guidance as check_guidance, with_guidance as with_guidance
from gftkit.networks.precision import (
    PRECISIONS as PRECISIONS,
    Precision as Precision,
    autocast as autocast,
    in_precision as in_precision,
    to_float32 as to_float32,
)
from gftkit.networks.state import frozen_weights as frozen_weights, load_weights as load_weights, shortened as shortened
