"""The monitor ``theory``: a fine-tune measured against what the theory predicts for it."""

from gftkit_verification.monitors.theory.monitor import Probe as Probe, Theory as Theory
