"""Sphinx: MyST for pages, numpydoc for docstrings, since these are what the docstrings are in.

Nothing is fetched: no inventories of other projects, no fonts, no scripts of others.
"""

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import raybrain  # noqa: E402 - found through the path above

project = "raybrain"
author = "The raybrain contributors"
copyright = "The raybrain contributors, Apache-2.0"
release = version = raybrain.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "mathml",
    "numpydoc",
    "sphinxcontrib.programoutput",
    "generated",
]
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"raybrain {release}"
html_static_path = []
# Formulas are set by the browser itself; no script is loaded.
html_math_renderer = "mathml"

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
# What a docstring says in single backticks is a link where it names something of this reference,
# and types in signatures belong to libraries whose inventories would need a network.
nitpick_ignore_regex = [("py:obj", ".*"), ("py:class", ".*")]

# The tutorial runs in a folder of its own, with the programs of this Python.
TUTORIAL = HERE / "_build" / "tutorial"
shutil.rmtree(TUTORIAL, ignore_errors=True)
TUTORIAL.mkdir(parents=True)
for file in (HERE / "tutorial").iterdir():
    if file.suffix != ".md":
        shutil.copy(file, TUTORIAL)
shutil.copy(HERE.parent / "jobs" / "experiments" / "nsd.yaml", TUTORIAL)
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    HF_HUB_OFFLINE="1",
    NSD_ROOT="/data/nsd",
    PYTHONPATH=os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])),
)
os.environ.pop("RAYBRAIN_WORKSPACE", None)
