"""`python -m tests.fuzz [TARGET ..] [--seconds N]`: atheris over some targets, or all, and a table.

  runs      how many inputs were tried
  edges     branches that were reached, of our Python; what a codec in C does is seen from outside only
  features  edges with how often each was taken, by libFuzzer's eight steps
  kept      inputs that reached something new

Ends with a failure where a target did; the input that did it lies as `crash-*` in the folder the table names.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

LIMITS = ("-timeout=20", "-rss_limit_mb=4096", "-max_len=20000")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="*", help="all, where none is named")
    parser.add_argument("--seconds", type=int, default=60, help="how long each runs")
    told = parser.parse_args()

    import atheris

    # So that the fuzzer sees which of our branches an input takes; codecs in C it sees from outside.
    with atheris.instrument_imports(include=["services", "shared"]):
        from tests.fuzz.targets import TARGETS

    print(f"{'target':12}{'runs':>12}{'runs/s':>8}{'edges':>8}{'features':>10}{'kept':>7}", flush=True)
    failed = []
    for name in told.target or TARGETS:
        target, examples = TARGETS[name]
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
        inputs, log = folder / "inputs", folder / "log"
        inputs.mkdir()
        for number, example in enumerate(examples):
            (inputs / f"example-{number}").write_bytes(example)
        # A process each: libFuzzer ends its own when the time is up, or a codec does.
        child = os.fork()
        if not child:
            written = os.open(log, os.O_WRONLY | os.O_CREAT)
            for output in (1, 2):
                os.dup2(written, output)
            limits = [f"-max_total_time={told.seconds}", *LIMITS, f"-artifact_prefix={folder}/"]
            atheris.Setup([sys.argv[0], str(inputs), *limits, "-print_final_stats=1"], target)
            atheris.Fuzz()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(_line(name, log.read_text(errors="replace"), told.seconds), flush=True)
        if status:
            failed.append(name)
            print(f"  failed: see {log}; inputs: {sorted(map(str, folder.glob('*-*')))}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _line(name: str, log: str, seconds: int) -> str:
    """What libFuzzer said last, as a line of the table."""
    seen = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log)
    runs = re.findall(r"^(?:#|stat::number_of_executed_units: *)(\d+)", log, re.MULTILINE)
    if not seen or not runs:
        return f"{name:12} no numbers: it ended before the first"
    edges, features, kept = map(int, seen[-1])
    tried = max(map(int, runs))
    return f"{name:12}{tried:>12,}{tried // seconds:>8,}{edges:>8,}{features:>10,}{kept:>7,}"


if __name__ == "__main__":
    main()
