"""Claims: what they are, measured and reported."""

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
from gftkit.verify.runner import markdown as markdown, summary as summary
