#!/usr/bin/env python3
"""Dump the attention inputs of a Hugging Face causal LM as a sketchwalk trace.

The script runs a prompt through the model (and, if asked, some greedy decode steps) and records the
queries, keys and values that reach the attention function: after the rotary embedding and after
QK-norm, keys and values once per KV head. It hooks in through transformers' attention interface, so
any model that uses it works unchanged; the attention itself is computed by PyTorch's SDPA.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = "1.0"
FORMAT_VERSION = 1
ATTENTION_NAME = "sw_capture"
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
HDF5_SUFFIXES = {".h5", ".hdf5"}
SAFETENSORS_SUFFIXES = {".safetensors"}
CHUNK_BYTES = 1 << 20

EXAMPLES = """\
examples:
  # 4,096 tokens of a text file and 16 decode steps, every layer, as bf16
  export_hf_trace.py Qwen/Qwen3-0.6B --text book.txt --max-tokens 4096 --decode 16 -o book.h5

  # record 3 of a LongBench file, layers 8..15, both formats, with the answer's token span
  export_hf_trace.py ./Llama-3.1-8B-Instruct --jsonl hotpotqa.jsonl --record 3 --field context \\
      --answer "Delhi" --layers 8:16 --device cuda -o hotpot.h5 hotpot.safetensors

  # a GGUF file in a local folder, kept in float32
  export_hf_trace.py ./models --gguf-file smollm2.gguf --text book.txt --max-tokens 1000 \\
      --dtype f32 -o smollm2.safetensors

  # token ids instead of text (a JSON list, or numbers separated by blanks or commas)
  export_hf_trace.py ./tiny-model --token-ids ids.json --dtype f32 -o tiny.h5

The whole trace is held in memory before it is written: 2 bytes (bf16, f16) or 4 bytes (f32) x
layers x tokens x (query heads + 2 x KV heads) x head_dim. Use --layers to bound it.

exit codes: 0 done, 1 runtime error, 2 usage.
"""


class ExportError(Exception):
    """Something that stops the export; the message is shown to the user."""


# ---- input ----


@dataclass
class Prompt:
    """Token ids of the prompt, the source they came from and the answer's token ranges."""

    ids: list[int]
    source: str
    answer_spans: list[tuple[int, int]] = field(default_factory=list)


def read_text(path: Path) -> str:
    """Reads a UTF-8 file as it is (line ends are kept)."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"{path} is not UTF-8: {error}") from error


def read_record(path: Path, index: int, name: str) -> tuple[str, str]:
    """Returns the text in field `name` of the index-th record, and how to cite that record."""
    lines = [line for line in read_text(path).split("\n") if line.strip()]
    if not 0 <= index < len(lines):
        raise ExportError(f"{path} has {len(lines)} records; there is no record {index}")
    try:
        record = json.loads(lines[index])
    except json.JSONDecodeError as error:
        raise ExportError(f"{path}, record {index}: not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get(name), str):
        known = ", ".join(record) if isinstance(record, dict) else "none"
        raise ExportError(f"{path}, record {index}: no text field '{name}' (fields: {known})")
    sample = record.get("_id", record.get("id", index))
    return record[name], f"{path.name}#{sample}"


def read_token_ids(path: Path) -> list[int]:
    """Reads token ids: a JSON list, or integers separated by white space or commas."""
    text = read_text(path)
    try:
        return [int(word) for word in text.strip().strip("[]").replace(",", " ").split()]
    except ValueError as error:
        raise ExportError(f"{path} is not a list of token ids: {error}") from error


def find_answers(
    text: str, offsets: list[tuple[int, int]], answers: list[str]
) -> list[tuple[int, int]]:
    """Maps every occurrence of every answer to the half-open range of the tokens that touch it.

    Occurrences that reach past the last token (the prompt was cut) are left out.
    """
    spans: set[tuple[int, int]] = set()
    end_of_prompt = max((end for _, end in offsets), default=0)
    for answer in answers:
        found = False
        start = text.find(answer)
        while start >= 0:
            end = start + len(answer)
            inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
            if inside and end <= end_of_prompt:
                spans.add((inside[0], inside[-1] + 1))
                found = True
            start = text.find(answer, start + 1)
        if not found:
            raise ExportError(f"the answer {answer!r} does not occur in the prompt that was kept")
    return sorted(spans)


def make_prompt(args: argparse.Namespace, tokenizer: Any | None) -> Prompt:
    """Builds the prompt from --text, --jsonl or --token-ids, cut to --max-tokens."""
    if args.token_ids:
        prompt = Prompt(read_token_ids(args.token_ids)[: args.max_tokens], args.token_ids.name)
    else:
        if args.text:
            text, source = read_text(args.text), args.text.name
        else:
            text, source = read_record(args.jsonl, args.record, args.field)
        encoded = tokenizer(
            text,
            add_special_tokens=not args.no_special_tokens,
            return_offsets_mapping=bool(args.answer),
            verbose=False,
        )
        prompt = Prompt(list(encoded["input_ids"])[: args.max_tokens], source)
        if args.answer:
            offsets = [tuple(pair) for pair in encoded["offset_mapping"][: args.max_tokens]]
            prompt.answer_spans = find_answers(text, offsets, args.answer)
    if not prompt.ids:
        raise ExportError(f"{prompt.source} gives no tokens")
    prompt.source = args.source or prompt.source
    return prompt


# ---- model ----


def load_tokenizer(args: argparse.Namespace) -> Any:
    """Loads the model's fast tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model, **gguf_option(args))
    if not tokenizer.is_fast:
        raise ExportError("the model has no fast tokenizer; pass the ids with --token-ids")
    if args.gguf_file:
        follow_gguf(tokenizer, args)
    return tokenizer


def follow_gguf(tokenizer: Any, args: argparse.Namespace) -> None:
    """Applies what the GGUF says about its tokenizer and some transformers releases overlook.

    These are: digits split one by one (by the name of the pre-tokenizer) and no BOS.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers.utils import cached_file

    reader = GGUFReader(cached_file(args.model, args.gguf_file))
    split = reader.get_field("tokenizer.ggml.pre")
    add_bos = reader.get_field("tokenizer.ggml.add_bos_token")
    if split is not None and split.contents() in {"smollm", "starcoder", "refact", "command-r"}:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if add_bos is not None and not add_bos.contents():
        args.no_special_tokens = True


def gguf_option(args: argparse.Namespace) -> dict[str, str]:
    """The from_pretrained option that names a GGUF file, if one was given."""
    return {"gguf_file": args.gguf_file} if args.gguf_file else {}


def load_model(args: argparse.Namespace) -> Any:
    """Loads the model with the capturing attention function, ready to run."""
    import torch
    from transformers import AutoModelForCausalLM

    compute = args.compute_dtype
    if compute == "auto":
        dtype = torch.float32 if args.gguf_file else "auto"
    else:
        dtype = getattr(torch, DTYPES[compute])
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=dtype, attn_implementation=ATTENTION_NAME, **gguf_option(args)
    )
    return model.to(args.device).eval()


# ---- trace ----


class Capture:
    """Collects q, k and v of the wanted layers while the model runs.

    Every layer holds three tensors [heads, total_tokens, head_dim] in the trace's dtype; a call for
    n new tokens fills the next n rows.
    """

    def __init__(self, layers: range, total_tokens: int, dtype: Any) -> None:
        self.layers = layers
        self.total_tokens = total_tokens
        self.dtype = dtype
        self.tensors: dict[int, dict[str, Any]] = {}
        self.filled: dict[int, int] = {}
        self.rescaled = False

    def attend(
        self, module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any
    ) -> Any:
        """The attention function given to transformers: record, then run SDPA."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        if module.layer_idx in self.layers:
            self._record(module.layer_idx, query, key, value, options)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **options)

    def _record(
        self, layer: int, query: Any, key: Any, value: Any, options: dict[str, Any]
    ) -> None:
        if options.get("softcap") is not None or options.get("s_aux") is not None:
            raise ExportError(
                "this model uses soft-capped scores or sink logits, which a trace cannot hold"
            )
        if not query.shape[-1] == key.shape[-1] == value.shape[-1]:
            raise ExportError(
                "queries and values have different head sizes, which a trace cannot hold"
            )
        new = query.shape[2]
        start = self.filled.get(layer, 0)
        head_dim = query.shape[-1]
        scale = options.get("scaling")
        factor = 1.0 if scale is None else scale * head_dim**0.5
        if abs(factor - 1.0) > 1e-6:  # a trace is evaluated with 1 / sqrt(head_dim)
            query = query * factor
            self.rescaled = True
        # The cache hands over all keys so far; the new ones are the last.
        rows = {"q": query[0], "k": key[0, :, -new:], "v": value[0, :, -new:]}
        if layer not in self.tensors:
            self.tensors[layer] = {
                name: row.new_empty(
                    (row.shape[0], self.total_tokens, head_dim), dtype=self.dtype, device="cpu"
                )
                for name, row in rows.items()
            }
        for name, row in rows.items():
            self.tensors[layer][name][:, start : start + new] = row.to("cpu", self.dtype)
        self.filled[layer] = start + new

    def check(self) -> None:
        """Raises unless every wanted layer is complete and all layers have one shape."""
        missing = [layer for layer in self.layers if self.filled.get(layer) != self.total_tokens]
        if missing:
            raise ExportError(
                f"no attention inputs from layers {missing}: they bypass transformers' attention "
                "interface (choose others with --layers)"
            )
        shapes = {
            tuple(tuple(t.shape) for t in tensors.values()) for tensors in self.tensors.values()
        }
        if len(shapes) != 1:
            raise ExportError(
                "the layers differ in heads or head size (choose a uniform run with --layers)"
            )
        for layer, tensors in self.tensors.items():
            if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
                raise ExportError(
                    f"layer {layer} has infinite or NaN values in the stored type (try --dtype f32)"
                )


@contextmanager
def registered(function: Callable[..., Any]) -> Iterator[None]:
    """Makes `function` known to transformers, with SDPA's attention masks."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(ATTENTION_NAME, function)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    try:
        yield
    finally:
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop(ATTENTION_NAME, None)


def run_model(model: Any, ids: list[int], decode: int) -> list[int]:
    """Runs the prompt in one pass and `decode` greedy steps; returns every token that was fed."""
    import torch

    tokens = list(ids)
    cache = None
    with torch.inference_mode():
        feed = torch.tensor([ids], device=model.device)
        for step in range(decode + 1):
            result = model(
                input_ids=feed, past_key_values=cache, use_cache=decode > 0, logits_to_keep=1
            )
            if step == decode:
                break
            cache = result.past_key_values
            feed = result.logits[:, -1:].argmax(-1)
            tokens.append(int(feed))
            log(f"decode step {step + 1}/{decode}: token {tokens[-1]}")
    return tokens


@dataclass
class Trace:
    """What goes into the file: root attributes, layers, tokens and the optional parts."""

    attributes: dict[str, str | int]
    layers: dict[int, dict[str, Any]]
    tokens: list[int]
    answer_spans: list[tuple[int, int]]
    text: str | None


def wanted_layers(spec: str | None, count: int) -> range:
    """Turns --layers a:b into layer indices, checked against the model's layer count."""
    if spec is None:
        return range(count)
    first, last = (int(part) if part else None for part in spec.split(":"))
    layers = range(first or 0, count if last is None else last)
    if not 0 <= layers.start < layers.stop <= count:
        raise ExportError(f"--layers {spec}: the model has layers 0:{count}")
    return layers


def export(args: argparse.Namespace) -> Trace:
    """Runs the model on the prompt and returns the trace."""
    import torch
    import transformers

    tokenizer = None if args.token_ids and not args.store_text else load_tokenizer(args)
    prompt = make_prompt(args, tokenizer)
    total = len(prompt.ids) + args.decode
    capture = Capture(range(0), total, getattr(torch, DTYPES[args.dtype]))
    with registered(capture.attend):
        log(f"loading {args.gguf_file or args.model}")
        model = load_model(args)
        config = model.config.get_text_config()
        capture.layers = wanted_layers(args.layers, config.num_hidden_layers)
        if not 0 <= min(prompt.ids) <= max(prompt.ids) < config.vocab_size:
            raise ExportError(f"token ids must be in 0..{config.vocab_size - 1}")
        longest = getattr(config, "max_position_embeddings", None)
        if longest and total > longest:
            log(f"warning: {total} tokens, but the model was made for {longest}")
        log(f"running {len(prompt.ids)} prompt tokens")
        tokens = run_model(model, prompt.ids, args.decode)
    capture.check()
    if capture.rescaled:
        log("queries were rescaled, so that the softmax scale is 1/sqrt(head_dim)")
    first = capture.tensors[capture.layers.start]
    attributes: dict[str, str | int] = {
        "format": "sketchwalk-trace",
        "version": FORMAT_VERSION,
        "model": args.model_name or Path(args.gguf_file or args.model.rstrip("/")).name,
        "num_layers": len(capture.layers),
        "first_layer": capture.layers.start,
        "num_heads": first["q"].shape[0],
        "num_kv_heads": first["k"].shape[0],
        "head_dim": first["q"].shape[2],
        "prefill_tokens": len(prompt.ids),
        "total_tokens": total,
        "dtype": args.dtype,
        "rope_applied": 1,
        "source": prompt.source,
        "created_by": f"export_hf_trace.py {VERSION} (transformers {transformers.__version__}, "
        f"torch {torch.__version__})",
    }
    text = tokenizer.decode(tokens) if args.store_text else None
    return Trace(attributes, capture.tensors, tokens, prompt.answer_spans, text)


# ---- files ----


def write_hdf5(trace: Trace, path: Path) -> None:
    """Writes the HDF5 form: /layers/<LL>/{q,k,v}, chunked along tokens, shuffled and deflated."""
    import h5py
    import numpy as np
    import torch

    with h5py.File(path, "w") as file:
        file.attrs.update(trace.attributes)
        for layer, tensors in sorted(trace.layers.items()):
            group = file.create_group(f"layers/{layer:02d}")
            for name, tensor in tensors.items():
                bf16 = tensor.dtype == torch.bfloat16
                array = tensor.view(torch.int16).numpy().view(np.uint16) if bf16 else tensor.numpy()
                heads, tokens, head_dim = array.shape
                rows = max(16, CHUNK_BYTES // (heads * head_dim * array.itemsize))
                dataset = group.create_dataset(
                    name, data=array, chunks=(heads, min(tokens, rows), head_dim),
                    compression="gzip", compression_opts=4, shuffle=True,
                )  # fmt: skip
                if bf16:
                    dataset.attrs["dtype"] = "bf16"
        file.create_dataset("tokens", data=np.asarray(trace.tokens, np.int32))
        if trace.answer_spans:
            file.create_dataset("answer_span", data=np.asarray(trace.answer_spans, np.int64))
        if trace.text is not None:
            file.create_dataset("text", data=trace.text, dtype=h5py.string_dtype("utf-8"))


def write_safetensors(trace: Trace, path: Path) -> None:
    """Writes the safetensors form: layers.<L>.{q,k,v}, the attributes as metadata strings."""
    import torch
    from safetensors.torch import save_file

    tensors = {
        f"layers.{layer}.{name}": tensor
        for layer, parts in trace.layers.items()
        for name, tensor in parts.items()
    }
    tensors["tokens"] = torch.tensor(trace.tokens, dtype=torch.int32)
    if trace.answer_spans:
        tensors["answer_span"] = torch.tensor(trace.answer_spans, dtype=torch.int64)
    metadata = {name: str(value) for name, value in trace.attributes.items()}
    if trace.text is not None:
        metadata["text"] = trace.text
    save_file(tensors, path, metadata)


def write(trace: Trace, path: Path) -> None:
    """Writes next to the target and renames, so that no half-written file is left behind."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    writer = write_hdf5 if path.suffix.lower() in HDF5_SUFFIXES else write_safetensors
    try:
        writer(trace, partial)
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)  # safetensors makes private files
        os.replace(partial, path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    log(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def log(message: str) -> None:
    """Progress goes to stderr."""
    print(message, file=sys.stderr, flush=True)


# ---- command ----


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; usage errors exit with 2."""
    parser = argparse.ArgumentParser(
        prog="export_hf_trace.py", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "model", help="model name on the Hugging Face hub, local folder, or .gguf file"
    )
    parser.add_argument(
        "--gguf-file", metavar="NAME", help="GGUF file inside MODEL, as in from_pretrained"
    )

    source = parser.add_argument_group("prompt (one of the first three)")
    one = source.add_mutually_exclusive_group(required=True)
    one.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text")
    one.add_argument(
        "--jsonl", type=Path, metavar="FILE", help="records, one a line, as in LongBench or RULER"
    )
    one.add_argument(
        "--token-ids", type=Path, metavar="FILE", help="token ids; no tokenizer is needed"
    )
    source.add_argument(
        "--record", type=int, default=0, metavar="I", help="record of --jsonl, from 0 (default: 0)"
    )
    source.add_argument(
        "--field", default="context", help="text field of the record (default: context)"
    )
    source.add_argument("--max-tokens", type=positive, metavar="N", help="keep the first N tokens")
    source.add_argument(
        "--no-special-tokens",
        action="store_true",
        help="do not let the tokenizer add BOS and the like",
    )
    source.add_argument(
        "--answer", action="append", metavar="TEXT",
        help="store the token spans of every occurrence of TEXT in the prompt (repeatable)",
    )  # fmt: skip

    what = parser.add_argument_group("what to dump")
    what.add_argument(
        "--decode", type=natural, default=0, metavar="N", help="greedy decode steps (default: 0)"
    )
    what.add_argument(
        "--layers", type=layer_range, metavar="A:B", help="layers A to B-1 (default: all)"
    )
    what.add_argument("--dtype", choices=DTYPES, default="bf16", help="stored type (default: bf16)")
    what.add_argument(
        "--store-text", action="store_true", help="also store the decoded prompt and continuation"
    )
    what.add_argument(
        "--model-name", metavar="TEXT", help="the trace's model attribute (default: from MODEL)"
    )
    what.add_argument(
        "--source", metavar="TEXT", help="the trace's source attribute (default: from the prompt)"
    )

    run = parser.add_argument_group("run")
    run.add_argument(
        "--compute-dtype", choices=["auto", *DTYPES], default="auto",
        help="type the model runs in (default: auto, the checkpoint's own; f32 for GGUF)",
    )  # fmt: skip
    run.add_argument("--device", default="cpu", help="PyTorch device (default: cpu)")
    run.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (default: PyTorch's)"
    )
    run.add_argument(
        "-o", "--output", type=Path, nargs="+", required=True, metavar="FILE",
        help="one or more of .h5, .hdf5, .safetensors",
    )  # fmt: skip
    run.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    args = parser.parse_args(argv)

    for path in args.output:
        if path.suffix.lower() not in HDF5_SUFFIXES | SAFETENSORS_SUFFIXES:
            parser.error(f"{path}: the extension must be .h5, .hdf5 or .safetensors")
    if args.answer and args.token_ids:
        parser.error("--answer needs --text or --jsonl")
    if args.answer and "" in args.answer:
        parser.error("--answer must not be empty")
    if args.model.endswith(".gguf") and not args.gguf_file:
        file = Path(args.model)
        args.model, args.gguf_file = str(file.parent), file.name
    return args


def natural(text: str) -> int:
    """An integer of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def positive(text: str) -> int:
    """An integer of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def layer_range(text: str) -> str:
    """A:B with either end left out if wanted."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part == "" or part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError("must look like A:B, for example 0:4")
    return text


def check_outputs(args: argparse.Namespace) -> None:
    """Refuses early, before the model is loaded."""
    for path in args.output:
        if not path.parent.is_dir():
            raise ExportError(f"{path.parent} is not a folder")
        if path.exists() and not args.force:
            raise ExportError(f"{path} exists (use --force to overwrite)")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parse(argv)
    try:
        check_outputs(args)
        import torch

        if args.threads:
            torch.set_num_threads(args.threads)
        trace = export(args)
        for path in args.output:
            write(trace, path)
    except ExportError as error:
        log(f"error: {error}")
        return 1
    except ImportError as error:
        log(f"error: {error} (pip install -r datasets/requirements.txt)")
        return 1
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
    ) as error:  # from loading or running the model
        log(f"error: {args.gguf_file or args.model}: {error}")
        return 1
    except KeyboardInterrupt:
        log("interrupted")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
