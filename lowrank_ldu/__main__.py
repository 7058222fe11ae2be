"""Run the command line by `python -m lowrank_ldu`."""

from __future__ import annotations

from lowrank_ldu.cli import main

if __name__ == "__main__":
    main()
