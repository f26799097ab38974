"""Trajectories of samples from source to data: their geometry, and time grids fitted to them."""

from gftkit.geometry.motion import motion_table as motion_table
from gftkit.geometry.pictures import fitted_grids as fitted_grids, motions as motions
from gftkit.geometry.shape import energies as energies, lengths as lengths, straightness as straightness
from gftkit.geometry.time_grid import fit_run as fit_run, read_grids as read_grids, write_grids as write_grids
from gftkit.geometry.tracing import flow_of as flow_of
