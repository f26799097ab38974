"""Choosing the retention of a finished run by evidence."""

from gftkit.selection.blended_run import Settings as Settings
from gftkit.selection.fit import fit_profile as fit_profile
from gftkit.selection.fitted import FittedProfile as FittedProfile, write_profile as write_profile
from gftkit.selection.pictures import fitted_profile as fitted_profile
