"""The convention of a foreign network, found by measurement."""

from gftkit.inspection.doctor import diagnose as diagnose
from gftkit.inspection.ranking import Inspection as Inspection
from gftkit.inspection.ranking import inspect as inspect
