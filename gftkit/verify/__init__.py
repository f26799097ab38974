"""Claims: what they are, how they are declared, measured and reported."""

from gftkit.verify.claims import (
    Claim as Claim,
    FALSE_ALARM as FALSE_ALARM,
    Line as Line,
    Measurement as Measurement,
    check as check,
    exact as exact,
    order as order,
    select as select,
    statistical as statistical,
)
from gftkit.verify.declaration import (
    FromRegistry as FromRegistry,
    REGISTRY as REGISTRY,
    claim as claim,
    claim_for_each as claim_for_each,
    claims_of as claims_of,
    registered as registered,
)
from gftkit.verify.runner import markdown as markdown, summary as summary
