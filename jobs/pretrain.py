"""python jobs/pretrain.py SETTINGS.yaml [address=value ...]: trains a pocket generator."""

import sys

from raybrain.config import InputError, load
from raybrain.pretraining.run import run
from raybrain.pretraining.settings import Pretraining


def main(arguments: list[str]) -> int:
    if not arguments or "=" in arguments[0]:
        print("type: python jobs/pretrain.py jobs/experiments/pocket.yaml", file=sys.stderr)
        return 2
    try:
        settings = load(arguments[0], tuple(arguments[1:]), schema=Pretraining)
        print(f"generator.checkpoint={run(settings)}")
    except InputError as error:
        print(f"raybrain: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
