"""llama.cpp and this project on the same model, text and threads, one after the other.

    python3 -m venv llama && llama/bin/pip install llama-cpp-python   # builds from source: minutes
    llama/bin/python tests/bench/compare_llama.py build/release/bin/model_bench \
        --models DIR --data shared/data

Prefill of the first tokens of War and Peace, then decode steps with the logits of each. llama.cpp
runs without and with flash attention; this project runs dense, and with 20% of the blocks kept
(selection included). Prints seconds, milliseconds and the ratio to the better llama.cpp; writes
them as JSON with -o. `--models` holds smollm2.gguf and qwen2.5-coder-0.5b.gguf, `--data`
text/war_and_peace.pg2600.txt.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time

import llama_cpp


def run_llama(path, text, tokens, steps, threads, flash):
    """Seconds of the prefill and the median seconds of a decode step."""
    model = llama_cpp.Llama(str(path), n_ctx=tokens + steps, n_batch=512, n_threads=threads,
                            n_threads_batch=threads, flash_attn=flash, verbose=False)
    ids = model.tokenize(text, add_bos=False, special=False)[:tokens + steps]
    start = time.perf_counter()
    model.eval(ids[:tokens])
    prefill = time.perf_counter() - start
    seconds = []
    for token in ids[tokens:]:
        start = time.perf_counter()
        model.eval([token])
        seconds.append(time.perf_counter() - start)
    return prefill, statistics.median(seconds)


def run_bench(bench, name, method, options):
    """The same two numbers from model_bench."""
    environment = dict(os.environ, SW_MODEL_DIR=options.models, SW_DATA_DIR=options.data,
                       SW_BENCH_TOKENS=str(options.tokens), SW_BENCH_THREADS=str(options.threads))
    out = subprocess.run([bench, "--benchmark_format=json",
                          f"--benchmark_filter=/{name}/{method}/"],
                         env=environment, check=True, capture_output=True, text=True).stdout
    rows = {row["name"].split("/")[0]: row for row in json.loads(out)["benchmarks"]}
    for row in rows.values():
        if row.get("error_occurred"):
            raise SystemExit(f"{row['name']}: {row['error_message']}")
    return options.tokens / rows["prefill"]["tokens/s"], 1.0 / rows["decode"]["tokens/s"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench", help="the program model_bench")
    parser.add_argument("--models", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", nargs="+", default=["smollm2"])
    parser.add_argument("--tokens", type=int, default=8122)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output")
    options = parser.parse_args()
    text = (pathlib.Path(options.data) / "text/war_and_peace.pg2600.txt").read_bytes()

    results = []
    for name in options.model:
        path = pathlib.Path(options.models) / f"{name}.gguf"
        rows = {}
        for flash in (False, True):
            label = f"llama.cpp ({llama_cpp.__version__})" + (", flash" if flash else "")
            rows[label] = run_llama(path, text, options.tokens, options.steps, options.threads,
                                    flash)
        peers = list(rows.values())
        for method in ("dense", "sketchwalk@0.2"):
            rows[method] = run_bench(options.bench, name, method, options)
        best = [min(peer[i] for peer in peers) for i in (0, 1)]
        print(f"{name}, {options.tokens} tokens, {options.threads} threads")
        print(f"{'':32}{'prefill s':>12}{'ratio':>8}{'decode ms':>12}{'ratio':>8}")
        for label, (prefill, step) in rows.items():
            print(f"{label:32}{prefill:12.2f}{best[0] / prefill:8.2f}"
                  f"{1e3 * step:12.2f}{best[1] / step:8.2f}")
            results.append({"model": name, "run": label, "tokens": options.tokens,
                            "threads": options.threads, "prefill_seconds": prefill,
                            "decode_seconds": step})
    if options.output:
        pathlib.Path(options.output).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
