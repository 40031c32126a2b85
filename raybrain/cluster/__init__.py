"""Everything that runs on Ray: one connection, tasks, training, pools of workers.

Importing this package imports neither Ray nor torch.
"""

from raybrain.cluster.pool import draw_units
from raybrain.cluster.progress import Progress
from raybrain.cluster.session import connect
from raybrain.cluster.share import Shared, share
from raybrain.cluster.tasks import map_tasks
from raybrain.cluster.train import train
from raybrain.cluster.worker import device, latest_checkpoint, rank, report, world_size

__all__ = [
    "Progress",
    "Shared",
    "connect",
    "device",
    "draw_units",
    "latest_checkpoint",
    "map_tasks",
    "rank",
    "report",
    "share",
    "train",
    "world_size",
]
