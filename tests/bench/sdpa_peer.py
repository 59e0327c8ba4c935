"""Times PyTorch's scaled_dot_product_attention, for `sw-profile --peer`.

    sw-profile cpu --peer "python3 tests/bench/sdpa_peer.py --device cpu" -o out
    sw-profile gpu --peer "python3 tests/bench/sdpa_peer.py --device cuda" -o out

Causal prefill of a whole context, or one query token over it (decode), on normal random data. On a
GPU each of the flash and cuDNN implementations that is there, by CUDA events, launched from Python.
Other memory is read before each run, so that the caches hold nothing of the inputs. Prints a JSON
list of {implementation, tokens, seconds} or, where an implementation refuses, {implementation,
tokens, seconds: [], reason}. Needs the package torch.
"""
import argparse
import json
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--phase", choices=["prefill", "decode"], required=True)
    parser.add_argument("--tokens", type=int, nargs="+", required=True)
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--kv-heads", type=int, required=True)
    parser.add_argument("--head-dim", type=int, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads > 0:
        torch.set_num_threads(options.threads)

    version = "torch " + torch.__version__.split("+")[0]
    if options.device == "cuda":
        backends = {version + " flash": SDPBackend.FLASH_ATTENTION,
                    version + " cuDNN": SDPBackend.CUDNN_ATTENTION}
        scratch = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    else:
        backends = {version + " SDPA": None}
        scratch = torch.empty(128 << 20, dtype=torch.uint8)

    def seconds(run):
        scratch.view(torch.int32).max()
        if options.device == "cpu":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    rows = []
    for tokens in options.tokens:
        def make(heads, length):
            return torch.randn(1, heads, length, options.head_dim, device=options.device,
                               dtype=DTYPES[options.dtype])
        queries = tokens if options.phase == "prefill" else 1
        q, k, v = (make(options.heads, queries), make(options.kv_heads, tokens),
                   make(options.kv_heads, tokens))
        for name, backend in backends.items():
            def run():
                grouped = options.heads != options.kv_heads
                attend = lambda: scaled_dot_product_attention(q, k, v, is_causal=queries > 1,
                                                              enable_gqa=grouped)
                if backend is None:
                    return attend()
                with sdpa_kernel(backend):
                    return attend()
            row = {"implementation": name, "tokens": tokens, "seconds": []}
            try:
                with torch.inference_mode():
                    for _ in range(options.warmup):
                        seconds(run)
                    row["seconds"] = [seconds(run) for _ in range(options.repeat)]
            except RuntimeError as error:
                row["reason"] = str(error).splitlines()[0]
            rows.append(row)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
