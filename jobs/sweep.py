"""python jobs/sweep.py SWEEP.yaml [address=value ...]: for `ray job submit`."""

import sys

from raybrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
