"""Score any model on Korean STS: python run_sts_eval.py MODEL [MODEL ...] --tasks korsts-test klue-sts-dev."""

from __future__ import annotations

import sys

from simcse_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
