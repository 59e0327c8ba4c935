#!/usr/bin/env python3
"""Makes hf_tiny.h5 (bf16) and hf_tiny.safetensors (f32): traces of a tiny random Llama.

Run from anywhere: python3 tests/data/make_hf_tiny.py (packages: datasets/requirements.txt).
Both traces hold the same run, 300 prompt tokens and 2 greedy decode steps of a model with fixed
weights and ids. For size, the HDF5 file holds layers 1 and 2, the safetensors file layer 1 only;
layer 1 of the first is layer 1 of the second rounded to bf16.
"""

import json
import random
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "datasets"))
import export_hf_trace  # noqa: E402

PROMPT_TOKENS = 300
DECODE_STEPS = 2
VOCABULARY = 128


def make_model(folder: Path) -> None:
    """Saves a 3-layer Llama with random weights: 4 query heads, 2 KV heads of 16."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
        initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def main() -> int:
    """Writes both files next to this script; returns the exit code."""
    ids = random.Random(11).choices(range(VOCABULARY), k=PROMPT_TOKENS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "hf-tiny"
        make_model(folder)
        id_file = Path(name) / "ids.json"
        id_file.write_text(json.dumps(ids))
        common = [str(folder), "--token-ids", str(id_file), "--decode", str(DECODE_STEPS)]
        common += ["--source", "random token ids", "--threads", "1", "--force"]
        for dtype, layers, file in (
            ("bf16", "1:3", "hf_tiny.h5"),
            ("f32", "1:2", "hf_tiny.safetensors"),
        ):
            code = export_hf_trace.main(
                [*common, "--dtype", dtype, "--layers", layers, "-o", str(HERE / file)]
            )
            if code != 0:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
