"""python jobs/score_generator.py CHECKPOINT [SHEETS] [address=value ...]: the model card's scores.

CHECKPOINT is pocket-diffusion or a folder; SHEETS a folder for contact sheets; assignments are of
`raybrain.config.Reconstruct`, such as guidance=3 scheduler=ddim.
"""

import sys
from pathlib import Path

import yaml

from raybrain.config import InputError, Reconstruct, validate
from raybrain.pretraining.bars import measure_bars


def main(arguments: list[str]) -> int:
    places = [word for word in arguments if "=" not in word]
    if not 1 <= len(places) <= 2:
        print("type: python jobs/score_generator.py pocket-diffusion [SHEETS]", file=sys.stderr)
        return 2
    tree = {
        key: yaml.safe_load(value)
        for key, value in (word.split("=", 1) for word in arguments if "=" in word)
    }
    try:
        settings = validate(tree, schema=Reconstruct, source="command line")
        sheets = Path(places[1]) if len(places) == 2 else None
        bars = measure_bars(places[0], settings=settings, sheets=sheets)
    except InputError as error:
        print(f"raybrain: {error}", file=sys.stderr)
        return 2
    for bar in bars:
        mark = "met" if bar.met else "NOT MET"
        print(
            f"{bar.name:24} {bar.value:8.4f}  asked {bar.wanted:g}  n={bar.n}  {mark}: {bar.about}"
        )
    return 0 if all(bar.met for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
