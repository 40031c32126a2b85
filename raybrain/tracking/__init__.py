"""Everything that is written to MLflow: who ran what, with which settings, and what came of it.

One MLflow experiment per dataset, and one for sweeps; one parent run per raybrain experiment, found
again when it is rerun; below it one run per stage, and below a search one run per candidate. The
client is always told which run it writes to: MLflow's notion of an active run depends on the
process and on the environment.
"""

from raybrain.tracking.address import (
    PORT,
    is_server,
    page_of,
    ui_command,
    upgrade,
    uri_of,
    where_to_look,
)
from raybrain.tracking.datasets import Described
from raybrain.tracking.models import describe_decoder, model_name, register_decoder
from raybrain.tracking.provenance import typed
from raybrain.tracking.runs import Run, Tracker, identity_of, open_tracker
from raybrain.tracking.studies import StudyLog
from raybrain.tracking.sweeps import SweepChild, SweepTracked, log_sweep
from raybrain.tracking.work import Work, working

__all__ = [
    "PORT",
    "Described",
    "Run",
    "StudyLog",
    "SweepChild",
    "SweepTracked",
    "Tracker",
    "Work",
    "describe_decoder",
    "identity_of",
    "is_server",
    "log_sweep",
    "model_name",
    "open_tracker",
    "page_of",
    "register_decoder",
    "typed",
    "ui_command",
    "upgrade",
    "uri_of",
    "where_to_look",
    "working",
]
