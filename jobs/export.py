"""python jobs/export.py EXPERIMENT.yaml [address=value ...]: for `ray job submit`."""

import sys

from raybrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
