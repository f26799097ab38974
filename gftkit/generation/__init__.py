"""Samples, likelihoods and exports of a finished run."""

from gftkit.generation.blending import Blended as Blended
from gftkit.generation.likelihood import Density as Density
from gftkit.generation.requested_conditions import read_conditions as read_conditions
from gftkit.generation.sampler import BATCH_SIZE as BATCH_SIZE, Request as Request, RunSampler as RunSampler
