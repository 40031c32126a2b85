"""Everything that runs on Ray: one connection, tasks, training, searches, pools of workers.

Importing this package imports neither Ray nor Optuna nor torch.
"""

from raybrain.cluster.address import starts_its_own
from raybrain.cluster.allocator import keep_freed_memory
from raybrain.cluster.capacity import Need
from raybrain.cluster.graph import State, Step, run_steps
from raybrain.cluster.plots import plot_study
from raybrain.cluster.pool import draw_units, units_in_hand
from raybrain.cluster.progress import Progress
from raybrain.cluster.session import connect, groups_at_once
from raybrain.cluster.share import Shared, Shelf, share, shelf
from raybrain.cluster.space import assignments, check_space, default_settings
from raybrain.cluster.study import Candidate, Event, Outcome, storage_of
from raybrain.cluster.tasks import map_tasks, on_worker
from raybrain.cluster.threads import in_threads
from raybrain.cluster.train import train
from raybrain.cluster.tuning import Refit, ranked, refit, search
from raybrain.cluster.watching import watching
from raybrain.cluster.worker import device, gpu, latest_checkpoint, rank, report, world_size

__all__ = [
    "Candidate",
    "Event",
    "Need",
    "Outcome",
    "Progress",
    "Refit",
    "Shared",
    "Shelf",
    "State",
    "Step",
    "assignments",
    "check_space",
    "connect",
    "default_settings",
    "device",
    "draw_units",
    "gpu",
    "groups_at_once",
    "in_threads",
    "keep_freed_memory",
    "latest_checkpoint",
    "map_tasks",
    "on_worker",
    "plot_study",
    "rank",
    "ranked",
    "refit",
    "report",
    "run_steps",
    "search",
    "share",
    "shelf",
    "starts_its_own",
    "storage_of",
    "train",
    "units_in_hand",
    "watching",
    "world_size",
]
