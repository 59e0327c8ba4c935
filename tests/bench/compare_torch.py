#!/usr/bin/env python3
"""PyTorch's scaled_dot_product_attention next to attention_bench, on the same machine and threads.

Rounds alternate: our benchmark, then PyTorch, each the best of a few calls. Ratios are medians over
the rounds of PyTorch's time over ours, so that what else the machine does meets both alike. A call
at 20% includes the selection. Needs torch in the Python that runs it:

    python tests/bench/compare_torch.py build/bin/attention_bench --rounds 5
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

try:
    import torch
except ImportError:
    sys.exit("error: this Python has no torch\nhint: pip install torch, in its own environment")

CASES = [  # tokens, query heads, KV heads, head dim
    (8192, 9, 3, 64),
    (16384, 14, 2, 64),
    (8192, 8, 2, 128),
]


def ours(bench, isa, case, dtype, density, seconds, threads):
    """Best wall time of one call in seconds."""
    n, heads, kv_heads, dim = case
    name = f"n{n}/h{heads}_{kv_heads}/d{dim}/density{density}/"
    run = subprocess.run(
        [bench, f"--benchmark_filter=^prefill/{isa}/{dtype}/{name}",
         f"--benchmark_min_time={seconds}", "--benchmark_format=json"],
        check=True, capture_output=True, text=True,
        env=dict(os.environ, SW_BENCH_THREADS=str(threads), OMP_NUM_THREADS=str(threads)))
    return json.loads(run.stdout)["benchmarks"][0]["ms"] / 1e3


def widest_isa(bench):
    names = subprocess.run([bench, "--benchmark_list_tests", "--benchmark_filter=^prefill"],
                           check=True, capture_output=True, text=True).stdout
    return names.split("/")[1]


def torchs(case, dtype, seconds):
    n, heads, kv_heads, dim = case
    torch.manual_seed(1)
    kind = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    q = torch.randn(1, heads, n, dim).to(kind)
    k, v = (torch.randn(1, kv_heads, n, dim).to(kind).repeat_interleave(heads // kv_heads, 1)
            for _ in range(2))  # outside the timed part: its kernel takes no KV groups
    best = float("inf")
    with torch.inference_mode():
        end = time.perf_counter() + seconds
        calls = 0
        while calls < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            best = min(best, time.perf_counter() - start)
            calls += 1
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bench", help="attention_bench of this project")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", action="append", choices=["bf16", "f32"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    isa = widest_isa(options.bench)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds")
    print(f"{'case':>28} {'ours':>12} {'torch ms':>9} {'dense ms':>9} {'20% ms':>9}"
          f" {'TFLOP/s':>8} {'x torch':>8} {'20% x dense':>12} {'20% x torch':>12}")
    for dtype in options.dtype or ["bf16", "f32"]:
        for case in CASES:
            rows = []
            for _ in range(options.rounds):
                dense = ours(options.bench, isa, case, dtype, 100, options.seconds, options.threads)
                peer = torchs(case, dtype, options.seconds)
                sparse = ours(options.bench, isa, case, dtype, 20, options.seconds, options.threads)
                rows.append((peer, dense, sparse))
            n, heads, _, dim = case
            best = [min(column) for column in zip(*rows)]
            ratios = [(p / d, d / s, p / s) for p, d, s in rows]
            ratio = [statistics.median(column) for column in zip(*ratios)]
            name = f"{dtype} n{n} h{case[1]}/{case[2]} d{dim}"
            print(f"{name:>28} {isa:>12} {1e3 * best[0]:9.1f} {1e3 * best[1]:9.1f}"
                  f" {1e3 * best[2]:9.1f} {2 * n * (n + 1) * heads * dim / best[1] / 1e12:8.3f}"
                  f" {ratio[0]:8.2f} {ratio[1]:12.2f} {ratio[2]:12.2f}", flush=True)


if __name__ == "__main__":
    main()
