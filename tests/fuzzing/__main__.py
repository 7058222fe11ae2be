"""Damage inputs of every format until time is up, and show what is neither read nor refused as it should be.

    python tests/fuzzing --minutes 60 --seed 1          # an hour of new inputs
    python tests/fuzzing --only GGUF --number 1234      # one of them again, with its traceback

The n-th input of a format and a seed is the same in every process. A process of its own reads them, within a limit of
memory; the one that counts notices when it ends or takes too long. The exit code is 1 if anything was found.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from harness import attempt, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--count", type=int, help="of inputs of each format, instead of until time is up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="a format; repeat for more")
    parser.add_argument("--number", type=int, help="read this one input of --only, and show what happens")
    parser.add_argument("--keep", type=Path, help="folder for the files of what is found")
    options = parser.parse_args()
    if options.number is not None:
        (name,) = options.only
        print(attempt(name, options.seed, options.number))  # noqa: T201
        sys.exit()
    seconds = 60 * options.minutes if options.count is None else None
    findings = run(options.only, options.seed, seconds=seconds, count=options.count, keep=options.keep, tell=print)
    sys.exit(bool(findings))
