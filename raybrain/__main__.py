"""``python -m raybrain``, the same as ``raybrain``."""

import sys

from raybrain.cli import main

sys.exit(main())
