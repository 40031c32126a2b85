"""Everything that is written to MLflow: who ran what, with which settings, and what came of it.

One MLflow experiment per dataset; one parent run per raybrain experiment, found again when it is
rerun; below it one run per stage, and below a search one run per candidate. The client is always
told which run it writes to: MLflow's notion of an active run depends on the process and on the
environment.
"""

from raybrain.tracking.address import ui_command, uri_of
from raybrain.tracking.models import register_decoder
from raybrain.tracking.runs import Run, Tracker, open_tracker
from raybrain.tracking.studies import StudyLog
from raybrain.tracking.sweeps import SweepChild, log_sweep

__all__ = [
    "Run",
    "StudyLog",
    "SweepChild",
    "Tracker",
    "log_sweep",
    "open_tracker",
    "register_decoder",
    "ui_command",
    "uri_of",
]
