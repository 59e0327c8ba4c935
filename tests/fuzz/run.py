#!/usr/bin/env python3
"""Runs the fuzz targets and says how many executions each had, its coverage and its time.

    cmake --preset fuzz && cmake --build build/fuzz
    tests/fuzz/run.py --seconds 2                    # a short run of all
    tests/fuzz/run.py gguf journal --seconds 60      # some of them
    tests/fuzz/run.py --long --jobs 12               # 10^7 executions
    tests/fuzz/run.py --long --jobs 12 --limit 400   # as much of them as 400 seconds allow

OUT/record.jsonl gets a line for each process that ran. With --long or --runs the targets take turns
until each has its executions, those of earlier calls with the same OUT and their corpora included.

A target stops at its first crash, leak, or execution of more than ten seconds: the input and the
log are left in OUT/TARGET, the other targets go on, and the exit code is 1.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
RSS_LIMIT_MB = 2048
TIMEOUT = 10
TURN = 60  # seconds after which a target of a long run lets others have its place
# Executions of the long run: each target gets about as much time as it has ways to go wrong.
LONG = {
    "trace_hdf5": 50_000, "hf_folder": 300_000, "tokenizer": 600_000, "journal": 500_000,
    "trace_safetensors": 300_000, "jsonl": 600_000, "method_spec": 150_000, "report": 200_000,
    "report_page": 200_000, "gguf": 1_600_000, "chat_template": 1_000_000, "gate_and_task": 800_000,
    "longbench_tables": 800_000, "config_json": 1_400_000, "safetensors": 1_600_000,
    "experiment": 400_000, "layer_entry": 400_000,
}


class Runs:
    """Processes of libFuzzer, `options.jobs` at a time, and the record of what they did."""

    def __init__(self, names, goals, options):
        self.names = names
        self.goals = goals  # executions of each target, or None: one turn each
        self.options = options
        self.end = time.monotonic() + options.limit if options.limit else None
        self.path = options.out / "record.jsonl"
        self.record = []
        if goals and self.path.exists():
            self.record = [json.loads(line) for line in self.path.read_text().splitlines()]
        self.running = collections.Counter()
        self.promised = collections.Counter()  # executions of those that run
        self.started = collections.Counter()
        self.failed = set()
        self.lock = threading.Lock()

    def total(self, name, field="executions"):
        return sum(row[field] for row in self.record if row["target"] == name)

    def edges(self, name):
        return max((row["edges"] for row in self.record if row["target"] == name), default=0)

    def next(self):
        """The target whose turn it is, its executions and its seconds; None when all is done."""
        left = self.end - time.monotonic() if self.end else float("inf")
        if left < 1:
            return None
        if not self.goals:
            open_names = [n for n in self.names if self.started[n] == 0]
            return (open_names[0], -1, min(self.options.seconds, left)) if open_names else None
        missing = {n: self.goals[n] - self.total(n) - self.promised[n]
                   for n in self.names if n not in self.failed}
        open_names = [n for n, m in missing.items() if m > 0]
        if not open_names:
            return None
        name = min(open_names, key=lambda n: (self.running[n], self.total(n) / self.goals[n]))
        share = -(-self.goals[name] // self.options.jobs)
        return name, min(missing[name], share), min(TURN, left)

    def work(self):
        while True:
            with self.lock:
                turn = self.next()
                if turn is None:
                    return
                name = turn[0]
                self.running[name] += 1
                self.promised[name] += turn[1]
                self.started[name] += 1
                log = self.options.out / name / f"{os.getpid()}-{self.started[name]}.log"
            row = run(self.options, *turn, log)
            with self.lock:
                self.running[name] -= 1
                self.promised[name] -= turn[1]
                self.record.append(row)
                with open(self.path, "a") as file:
                    print(json.dumps(row), file=file)
                if row["exit"] == 0:
                    log.unlink()
                else:
                    self.failed.add(name)
                    print(f"{name} failed: see {log}", file=sys.stderr, flush=True)

    def all(self):
        threads = [threading.Thread(target=self.work) for _ in range(self.options.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def table(self):
        lines = ["| target | executions | edges | seconds |", "|---|---:|---:|---:|"]
        for name in self.names:
            lines.append(f"| {name} | {self.total(name):,} | {self.edges(name):,} | "
                         f"{self.total(name, 'seconds'):,.0f} |")
        everything = sum(self.total(name) for name in self.names)
        return "\n".join([*lines, f"| all | {everything:,} | | |"])


def run(options, name, runs, seconds, log):
    """One process: a row of the record."""
    work = options.out / name
    (work / "corpus").mkdir(parents=True, exist_ok=True)
    dictionary = HERE / "dictionaries" / f"{name}.dict"
    command = [str(options.build / "bin" / f"fuzz_{name}"), f"-runs={runs}",
               f"-max_total_time={max(1, int(seconds))}", f"-timeout={options.timeout}",
               f"-rss_limit_mb={RSS_LIMIT_MB}", f"-max_len={options.max_len}",
               "-print_final_stats=1", f"-artifact_prefix={work}/",
               *([f"-dict={dictionary}"] if dictionary.exists() else []),
               str(work / "corpus"), str(HERE / "corpus" / name)]
    # A small quarantine of freed memory makes the forks of trace_hdf5 several times as fast.
    asan = "quarantine_size_mb=8:thread_local_quarantine_size_kb=256"
    if "ASAN_OPTIONS" in os.environ:
        asan += ":" + os.environ["ASAN_OPTIONS"]
    start = time.monotonic()
    with open(log, "w") as file:
        try:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT,
                                  env=os.environ | {"ASAN_OPTIONS": asan}).returncode
        except OSError as error:
            print(error, file=file)
            code = 127
    text = log.read_text(errors="replace")
    executed = re.findall(r"stat::number_of_executed_units: (\d+)", text) or ["0"]
    covered = re.findall(r" cov: (\d+)", text) or ["0"]
    return {"target": name, "executions": int(executed[-1]), "edges": int(covered[-1]),
            "seconds": round(time.monotonic() - start, 1), "exit": code}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--build", type=pathlib.Path, default=HERE.parent.parent / "build/fuzz")
    parser.add_argument("--out", type=pathlib.Path, help="default: BUILD/runs")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--seconds", type=int, help="for each target, once")
    goal.add_argument("--runs", type=int, default=100000, help="executions of each target")
    goal.add_argument("--long", action="store_true", help="the executions of the recorded run")
    parser.add_argument("--limit", type=int, help="seconds for all together")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--timeout", type=int, default=TIMEOUT, help="seconds of one execution")
    parser.add_argument("--max-len", type=int, default=4096, help="bytes of an input")
    options = parser.parse_args()
    options.out = options.out or options.build / "runs"
    names = options.targets or sorted(
        path.stem for path in HERE.glob("*.cpp") if (HERE / "corpus" / path.stem).is_dir())
    for name in names:
        (options.out / name).mkdir(parents=True, exist_ok=True)
    goals = LONG if options.long else {name: options.runs for name in names}
    runs = Runs(names, None if options.seconds else goals, options)
    runs.all()
    print(runs.table())
    idle = [name for name in names if runs.total(name) == 0]
    if idle and options.limit is None:
        print(f"nothing ran of: {', '.join(idle)}", file=sys.stderr)
        return 1
    return 1 if runs.failed else 0


if __name__ == "__main__":
    sys.exit(main())
