"""python jobs/predict.py EXPERIMENT.yaml [address=value ...]: for `ray job submit`."""

import sys

from raybrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
