"""Records: trackers, pictures and HTML reports."""

from gftkit.recording.html import (
    Section as Section,
    estimate_rows as estimate_rows,
    format_number as format_number,
    measured_text as measured_text,
    write_report as write_report,
)
from gftkit.recording.pictures import (
    COLOURS as COLOURS,
    Panel as Panel,
    Trace as Trace,
    figure_png as figure_png,
    new_figure as new_figure,
    sample_picture as sample_picture,
    tidy as tidy,
    write_png as write_png,
)
from gftkit.recording.trackers import TRACKERS as TRACKERS, Tracker as Tracker, Trackers as Trackers
