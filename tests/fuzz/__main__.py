"""`python -m tests.fuzz [TARGET ..] [--seconds N]`: atheris over some targets in turn, or over all.

Ends with a failure where one did; the input that did it lies as `crash-*` in the folder that target names.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help="all, where none is named")
    parser.add_argument("--seconds", type=int, default=60, help="how long each runs")
    told = parser.parse_args()

    import atheris

    # So that the fuzzer sees which of our branches an input takes; codecs in C it sees from outside.
    with atheris.instrument_imports(include=["services", "shared"]):
        from tests.fuzz.targets import TARGETS

    failed = []
    for name in told.target or TARGETS:
        target, examples = TARGETS[name]
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
        for number, example in enumerate(examples):
            (folder / f"example-{number}").write_bytes(example)
        print(f"{name}: {told.seconds} s, inputs in {folder}", flush=True)
        # A process each: libFuzzer ends its own when the time is up, or a codec does.
        child = os.fork()
        if not child:
            limits = [
                f"-max_total_time={told.seconds}",
                "-timeout=20",
                "-rss_limit_mb=4096",
                "-max_len=20000",
            ]
            shown = [f"-artifact_prefix={folder}/", "-verbosity=0", "-print_final_stats=1"]
            atheris.Setup([sys.argv[0], str(folder), *limits, *shown], target)
            atheris.Fuzz()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
