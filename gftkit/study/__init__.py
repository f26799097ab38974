"""Studies: many runs, compared."""

from gftkit.study.comparison import compare_runs as compare_runs, summary_table as summary_table
from gftkit.study.dry_run import try_out as try_out
from gftkit.study.plan import Plan as Plan
from gftkit.study.reporting import REPORT as REPORT, study_summary as study_summary, write_tables as write_tables
from gftkit.study.running import Outcome as Outcome, finished as finished, run_study as run_study
from gftkit.study.schema import Definition as Definition, Group as Group, Study as Study
from gftkit.study.statistics import differences as differences, spreads as spreads
from gftkit.study.tables import compared as compared, means as means
from gftkit.study.workers import default_workers as default_workers
