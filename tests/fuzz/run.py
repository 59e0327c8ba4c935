#!/usr/bin/env python3
"""Runs the fuzz targets and says how many executions each had, its coverage and its time.

    cmake --preset fuzz && cmake --build build/fuzz
    tests/fuzz/run.py --seconds 2                    # a short run of all
    tests/fuzz/run.py gguf journal --seconds 60      # some of them
    nice -n 10 tests/fuzz/run.py --long              # 10^7 executions

A target stops at its first crash, leak, or execution of more than ten seconds; the input is left in
OUT/TARGET, the message in OUT/TARGET.log, and the exit code is 1.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
RSS_LIMIT_MB = 2048
TIMEOUT = 10
# Executions of the long run: each target gets about as much time as it has ways to go wrong.
LONG = {
    "trace_hdf5": 50_000, "hf_folder": 300_000, "tokenizer": 600_000, "journal": 500_000,
    "trace_safetensors": 300_000, "jsonl": 600_000, "method_spec": 150_000, "report": 200_000,
    "report_page": 200_000, "gguf": 1_600_000, "chat_template": 1_000_000, "gate_and_task": 800_000,
    "longbench_tables": 800_000, "config_json": 1_400_000, "safetensors": 1_600_000,
    "experiment": 400_000, "layer_entry": 400_000,
}


def run(binary, name, runs, options):
    """Returns (executions, edges covered, seconds, exit code)."""
    work = options.out / name
    work.mkdir(parents=True, exist_ok=True)
    limit = [f"-max_total_time={options.seconds}"] if options.seconds else [f"-runs={runs}"]
    dictionary = HERE / "dictionaries" / f"{name}.dict"
    command = [str(binary), *limit, f"-timeout={TIMEOUT}", f"-rss_limit_mb={RSS_LIMIT_MB}",
               f"-max_len={options.max_len}", "-print_final_stats=1", f"-artifact_prefix={work}/",
               *([f"-dict={dictionary}"] if dictionary.exists() else []),
               str(work / "corpus"), str(HERE / "corpus" / name)]
    (work / "corpus").mkdir(exist_ok=True)
    start = time.monotonic()
    # A small quarantine of freed memory makes the forks of trace_hdf5 several times as fast.
    environment = os.environ | {"ASAN_OPTIONS": "quarantine_size_mb=8:thread_local_quarantine_size_kb=256"}
    with open(options.out / f"{name}.log", "w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
    text = (options.out / f"{name}.log").read_text(errors="replace")
    executed = re.findall(r"stat::number_of_executed_units: (\d+)", text) or ["0"]
    covered = re.findall(r" cov: (\d+)", text) or ["0"]
    return int(executed[-1]), int(covered[-1]), time.monotonic() - start, code


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--build", type=pathlib.Path, default=HERE.parent.parent / "build/fuzz")
    parser.add_argument("--out", type=pathlib.Path, help="default: BUILD/runs")
    parser.add_argument("--seconds", type=int, help="for each target")
    parser.add_argument("--runs", type=int, default=100000, help="executions of each target")
    parser.add_argument("--long", action="store_true", help="the executions of the recorded run")
    parser.add_argument("--max-len", type=int, default=4096, help="bytes of an input")
    options = parser.parse_args()
    options.out = options.out or options.build / "runs"
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.targets or sorted(
        path.stem for path in HERE.glob("*.cpp") if (HERE / "corpus" / path.stem).is_dir())
    total, failed = 0, []
    print("| target | executions | edges | seconds |\n|---|---:|---:|---:|")
    for name in names:
        runs = LONG[name] if options.long else options.runs
        executions, edges, seconds, code = run(options.build / "bin" / f"fuzz_{name}", name, runs, options)
        total += executions
        print(f"| {name} | {executions:,} | {edges:,} | {seconds:.0f} |", flush=True)
        if code != 0:
            failed.append(name)
    print(f"| all | {total:,} | | |")
    for name in failed:
        print(f"{name} failed: see {options.out / (name + '.log')}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
