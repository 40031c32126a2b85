"""``generator: {checkpoint: pale}``: the pocket generator with noise levels of its own.

A package of your own would return the folder in which its weights lie.
"""

import json
import tempfile
from functools import lru_cache
from pathlib import Path

from raybrain.config import Generator
from raybrain.diffusion import find_checkpoint


@lru_cache
def folder():
    """Return the folder of a diffusers checkpoint."""
    pocket = find_checkpoint(Generator(checkpoint="pocket-diffusion")).folder
    made = Path(tempfile.mkdtemp(prefix="pale"))
    for part in pocket.iterdir():
        (made / part.name).symlink_to(part)
    (made / "scheduler").unlink()
    (made / "scheduler").mkdir()
    settings = json.loads((pocket / "scheduler" / "scheduler_config.json").read_text())
    settings["beta_end"] *= 0.8
    (made / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    return made
