"""python jobs/compare.py RUN RUN ... [out=FOLDER]: for `ray job submit`."""

import sys

from raybrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
