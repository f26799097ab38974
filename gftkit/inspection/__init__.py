"""How a foreign network is called, found out by trying."""

from gftkit.inspection.doctor import diagnose as diagnose
from gftkit.inspection.ranking import Inspection as Inspection
from gftkit.inspection.ranking import inspect as inspect
