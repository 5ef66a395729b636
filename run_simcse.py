"""Train: accelerate launch run_simcse.py --config configs/sup_bert.json [--learning_rate 3e-5 ...]."""

from __future__ import annotations

import sys

from simcse_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
