"""Feed spoilt files to every reader of the package for as long as you like: `python scripts/fuzz.py --minutes 30`.

Prints a line for each new kind of failure, and counts at the end. With `--atheris TARGET` inputs are found by coverage
(needs the package atheris).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def main() -> None:
    """Run all targets in turn, or one of them under atheris."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--targets", nargs="*", help="those whose name contains one of these; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, default=12, help="GiB of address space")
    parser.add_argument("--crashes", type=Path, help="folder for inputs that failed")
    parser.add_argument("--atheris", metavar="TARGET", help="fuzz this one by coverage")
    options, rest = parser.parse_known_args()
    resource.setrlimit(resource.RLIMIT_AS, (int(options.memory * 2**30), -1))
    if options.crashes:
        options.crashes.mkdir(parents=True, exist_ok=True)
    if options.atheris:
        by_coverage(options, rest)
        return
    report = by_chance(options)
    print(json.dumps(report, indent=2))
    if options.crashes:
        (options.crashes / "report.json").write_text(json.dumps(report, indent=2))
    sys.exit(1 if report["failures"] or not report["inputs"] else 0)


def quiet() -> None:
    """Refusals are logged by the libraries too."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


def by_chance(options: argparse.Namespace) -> dict:
    """Spoil a seed of each target in turn until the time is over."""
    import fuzzing

    quiet()
    for part in options.targets or ():
        if not any(part in name for name in fuzzing.TARGETS):
            sys.exit(f"no target has {part!r} in its name; there are {', '.join(fuzzing.TARGETS)}")
    targets = {
        name: target
        for name, target in fuzzing.TARGETS.items()
        if not options.targets or any(part in name for part in options.targets)
    }
    chance = random.Random(options.seed)
    seeds_of = {name: seeds() for name, (_, seeds) in targets.items()}
    inputs, accepted, spent, failures = Counter(), Counter(), Counter(), {}
    current = options.crashes / "current" if options.crashes else None
    start = time.monotonic()
    while time.monotonic() - start < 60 * options.minutes:
        for name, (target, _) in targets.items():
            before = time.monotonic()
            while time.monotonic() - before < 1:  # slow targets and fast ones get as much time
                data = spoilt(chance, seeds_of[name], fuzzing)
                if current:  # what a crash of the interpreter leaves behind
                    current.write_bytes(name.encode() + b"\n" + data)
                inputs[name] += 1
                try:
                    accepted[name] += bool(target(data))
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # panics of Rust code and `Hang` are no Exception
                    frame = traceback.extract_tb(error.__traceback__)[-1]
                    key = f"{name.split('.')[0]} {type(error).__name__} {Path(frame.filename).name}:{frame.lineno}"
                    if key not in failures:
                        failures[key] = {"target": name, "error": str(error)[:300], "count": 0}
                        print(f"{key}: {str(error)[:300]}", file=sys.stderr, flush=True)
                        if options.crashes:
                            (options.crashes / f"{len(failures):03}").write_bytes(data)
                            (options.crashes / f"{len(failures):03}.txt").write_text(
                                f"{name}\n{''.join(traceback.format_exception(error))}"
                            )
                    failures[key]["count"] += 1
            spent[name] += time.monotonic() - before
    return {
        "seconds": round(time.monotonic() - start),
        "inputs": inputs.total(),
        "accepted": accepted.total(),
        "failures": failures,
        "targets": {
            name: f"{inputs[name]:,} inputs, {accepted[name]:,} accepted, {spent[name]:.0f} s" for name in targets
        },
    }


def spoilt(chance: random.Random, seeds, fuzzing) -> bytes:
    """A seed with a few changes, or raw bytes."""
    if chance.random() < 0.05:
        return chance.randbytes(chance.randrange(200))
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
        fuzzing.spoil(data, chance.randint, lambda: chance.randbytes(chance.randint(1, 8)))
    return bytes(data)


def by_coverage(options: argparse.Namespace, rest: list[str]) -> None:
    """Let atheris (libFuzzer) choose the inputs; the first failure ends the run, as libFuzzer does."""
    import atheris

    modules = [f"simcse_hf.{path.stem}" for path in Path(__file__).parent.parent.glob("src/simcse_hf/*.py")]
    with contextlib.redirect_stderr(None), atheris.instrument_imports(include=modules):
        import fuzzing
    quiet()
    if options.atheris not in fuzzing.TARGETS:
        sys.exit(f"there is no target {options.atheris!r}, but {', '.join(fuzzing.TARGETS)}")
    target, seeds = fuzzing.TARGETS[options.atheris]
    corpus = (options.crashes or Path(tempfile.gettempdir())) / f"corpus-{options.atheris.replace('/', '-')}"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed{number}").write_bytes(seed)

    def run(data: bytes) -> None:
        target(data)

    atheris.Setup(
        [sys.argv[0], f"-max_total_time={int(60 * options.minutes)}", "-max_len=4096", *rest, str(corpus)], run
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
