#!/usr/bin/env python3
"""Writes the corpora that fuzzing begins with: a few small files of every format, good ones and those
that are wrong in a way that a mutation would hardly find. Needs h5py. Files named found-* are not made
here: a fuzzer found them, and they stay.

    /usr/bin/python3 tests/fuzz/make_corpus.py
"""

import base64
import json
import pathlib
import re
import struct

import h5py

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CORPUS = HERE / "corpus"


def write(target, name, content):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    (folder / name).write_bytes(content)


def compact(value):
    return json.dumps(value, separators=(",", ":"))


# GGUF


def gguf_text(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


class Gguf:
    """A writer that checks nothing."""

    def __init__(self):
        self.metadata, self.infos, self.data = [], [], b""

    def raw(self, key, kind, stored):
        self.metadata.append(gguf_text(key) + struct.pack("<I", kind) + stored)

    def u32(self, key, value):
        self.raw(key, 4, struct.pack("<I", value))

    def f32(self, key, value):
        self.raw(key, 6, struct.pack("<f", value))

    def text(self, key, value):
        self.raw(key, 8, gguf_text(value))

    def texts(self, key, values):
        stored = struct.pack("<IQ", 8, len(values)) + b"".join(map(gguf_text, values))
        self.raw(key, 9, stored)

    def i32s(self, key, values):
        self.raw(key, 9, struct.pack("<IQ", 5, len(values)) + struct.pack(f"<{len(values)}i", *values))

    def tensor(self, name, shape, kind=0, data=None):
        elements = 1
        for extent in shape:
            elements *= extent
        self.data += bytes(-len(self.data) % 32)
        info = gguf_text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        self.infos.append(info + struct.pack("<IQ", kind, len(self.data)))
        self.data += bytes(4 * elements) if data is None else data

    def bytes(self, version=3):
        head = b"GGUF" + struct.pack("<IQQ", version, len(self.infos), len(self.metadata))
        head += b"".join(self.metadata) + b"".join(self.infos)
        return head + bytes(-len(head) % 32) + self.data


def gguf_model(arch):
    b = Gguf()
    b.text("general.architecture", arch)
    b.u32(arch + ".block_count", 1)
    b.u32(arch + ".embedding_length", 4)
    b.u32(arch + ".feed_forward_length", 2)
    b.u32(arch + ".attention.head_count", 2)
    b.u32(arch + ".attention.head_count_kv", 1)
    b.f32(arch + ".attention.layer_norm_rms_epsilon", 1e-5)
    b.text("tokenizer.ggml.model", "gpt2")
    b.text("tokenizer.ggml.pre", "smollm")
    b.texts("tokenizer.ggml.tokens", ["a", "b", "ab", "<a>"])
    b.i32s("tokenizer.ggml.token_type", [1, 1, 1, 3])
    b.texts("tokenizer.ggml.merges", ["a b"])
    b.u32("tokenizer.ggml.eos_token_id", 1)
    for name, shape in (
        ("token_embd", (4, 4)), ("output_norm", (4,)), ("blk.0.attn_norm", (4,)),
        ("blk.0.attn_q", (4, 4)), ("blk.0.attn_k", (4, 2)), ("blk.0.attn_v", (4, 2)),
        ("blk.0.attn_output", (4, 4)), ("blk.0.ffn_norm", (4,)), ("blk.0.ffn_gate", (4, 2)),
        ("blk.0.ffn_up", (4, 2)), ("blk.0.ffn_down", (2, 4)),
    ):
        b.tensor(name + ".weight", shape)
    if arch == "qwen2":
        for name, extent in (("attn_q", 4), ("attn_k", 2), ("attn_v", 2)):
            b.tensor(f"blk.0.{name}.bias", (extent,))
    if arch == "qwen3":
        b.tensor("blk.0.attn_q_norm.weight", (2,))
        b.tensor("blk.0.attn_k_norm.weight", (2,))
    return b


def make_gguf():
    for arch in ("llama", "qwen2", "qwen3"):
        write("gguf", arch, gguf_model(arch).bytes())
    write("gguf", "version2", Gguf().bytes(2))
    b = Gguf()  # every type of value, and every storage type with one block
    for kind, stored in enumerate(
        (b"\1", b"\2", b"\3\0", b"\4\0", bytes(4), bytes(4), bytes(4), b"\1")
    ):
        b.raw(f"v{kind}", kind, stored)
    for kind in (10, 11, 12):
        b.raw(f"v{kind}", kind, bytes(8))
    b.raw("bools", 9, struct.pack("<IQ", 7, 2) + b"\0\1")
    for kind, elements, size in (
        (0, 32, 128), (1, 32, 64), (2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24), (8, 32, 34),
        (10, 256, 84), (11, 256, 110), (12, 256, 144), (13, 256, 176), (14, 256, 210), (30, 32, 64),
    ):
        b.tensor(f"t{kind}", (elements, 1), kind, bytes(size))
    write("gguf", "types", b.bytes())
    b = gguf_model("llama")
    b.text("tokenizer.chat_template", "<|im_start|><|im_end|>add_generation_prompt")
    b.tensor("rope_freqs.weight", (1,))
    write("gguf", "template", b.bytes())
    huge = bytearray(Gguf().bytes())
    huge[8:24] = b"\xff" * 16
    write("gguf", "huge_counts", bytes(huge))


# safetensors


def safetensors(tensors, metadata=None, text=None):
    """tensors: name -> (dtype, shape, bytes)."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, stored) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(data), len(data) + len(stored)]}
        data += stored
    text = (text or compact(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


TRACE = {
    "format": "sketchwalk-trace", "version": 1, "model": "tiny", "num_layers": 1, "num_heads": 2,
    "num_kv_heads": 1, "head_dim": 2, "prefill_tokens": 2, "total_tokens": 3, "dtype": "f32",
    "rope_applied": 1, "source": "corpus", "created_by": "make_corpus.py", "first_layer": 1,
    "model_layers": 4, "perplexity": "7.5", "planted_block": 2,
}


def make_safetensors():
    write("safetensors", "empty", safetensors({}))
    write("safetensors", "types", safetensors(
        {name: (name, [2], bytes(2 * size)) for name, size in
         (("BOOL", 1), ("F8_E4M3", 1), ("I16", 2), ("BF16", 2), ("F32", 4), ("U64", 8))}, {"a": "b"}))
    write("safetensors", "extents", safetensors(
        {"scalar": ("F32", [], bytes(4)), "none": ("F32", [0, 3], b""), "one": ("F16", [1, 1], bytes(2))}))
    write("safetensors", "overflow", safetensors({}, text=compact(
        {"a": {"dtype": "F64", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}})))
    write("safetensors", "long_header", struct.pack("<Q", 2**63) + b"{}")

    tensors = {"layers.1.q": ("F32", [2, 3, 2], bytes(48)), "layers.1.k": ("F32", [1, 3, 2], bytes(24)),
               "layers.1.v": ("F32", [1, 3, 2], bytes(24)),
               "answer_span": ("I64", [1, 2], struct.pack("<2q", 0, 1)),
               "planted": ("I32", [1, 2, 1], struct.pack("<2i", -1, 0)),
               "tokens": ("I32", [3], struct.pack("<3i", 5, 6, 7))}
    metadata = {key: str(value) for key, value in TRACE.items()}
    write("trace_safetensors", "f32", safetensors(tensors, metadata | {"text": "a text"}))
    half = {name: ("BF16", shape, stored[: len(stored) // 2]) if dtype == "F32" else (dtype, shape, stored)
            for name, (dtype, shape, stored) in tensors.items()}
    write("trace_safetensors", "bf16", safetensors(half, metadata | {"dtype": "bf16"}))
    huge = metadata | {"num_heads": str(2**62), "num_kv_heads": str(2**61), "num_layers": str(2**32)}
    write("trace_safetensors", "huge", safetensors(tensors, huge))


def make_hdf5():
    folder = CORPUS / "trace_hdf5"
    folder.mkdir(parents=True, exist_ok=True)
    for name, libver, chunked in (("old", "earliest", False), ("new", "v110", False),
                                  ("deflate", "earliest", True), ("new_deflate", "v110", True)):
        # Without times, so that the same script writes the same bytes.
        plist = h5py.h5p.create(h5py.h5p.FILE_CREATE)
        plist.set_obj_track_times(False)
        access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
        low, high = {"earliest": (h5py.h5f.LIBVER_EARLIEST, h5py.h5f.LIBVER_LATEST),
                     "v110": (h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)}[libver]
        access.set_libver_bounds(low, high)
        created = h5py.h5f.create(bytes(folder / name), h5py.h5f.ACC_TRUNC, fcpl=plist, fapl=access)
        with h5py.File(created) as file:
            for group in ("layers", "layers/01"):
                creation = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
                creation.set_obj_track_times(False)
                h5py.h5g.create(file.id, group.encode(), gcpl=creation)
            for key, value in TRACE.items():
                file.attrs[key] = value
            for tensor, heads in (("q", 2), ("k", 1), ("v", 1)):
                options = {"chunks": (1, 3, 2), "compression": 1, "shuffle": True} if chunked else {}
                file.create_dataset(f"layers/01/{tensor}", data=[[[0.5, 1.0]] * 3] * heads,
                                    dtype="f4", **options)
            if chunked:
                continue
            file.create_dataset("tokens", data=[5, 6, 7], dtype="i4")
            file["answer_span"] = [[0, 1]]
            file.create_dataset("planted", data=[[[-1], [0]]], dtype="i4")
            file["text"] = "a text"


# Models and tokenizers of Hugging Face

BPE = {
    "added_tokens": [
        {"id": 4, "content": "<s>", "special": True, "lstrip": True, "rstrip": False},
        {"id": 5, "content": "<think>", "special": False, "single_word": True, "normalized": True}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKD"}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"String": "--"}, "behavior": "Removed", "invert": False},
        {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}]?\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)"},
         "behavior": "Isolated", "invert": False},
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}]},
    "post_processor": {"type": "Sequence", "processors": [
        {"type": "ByteLevel"},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {}}]}]},
    "decoder": {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]},
    "model": {"type": "BPE", "dropout": None, "unk_token": "a", "fuse_unk": True,
              "ignore_merges": True, "byte_fallback": False,
              "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3}, "merges": ["a b"]},
}


def make_tokenizers():
    plain = {"pre_tokenizer": {"type": "ByteLevel"},
             "model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}
    parts = [compact(BPE), '{"bos_token":"<s>","eos_token":{"content":"ab"},"add_bos_token":false}',
             '{"eos_token_id":[1,2]}', "abba <s>--12's \u00e9\u0301<think> \u3000x"]
    write("tokenizer", "all", b"\xff".join(part.encode() for part in parts))
    write("tokenizer", "plain", b"\xff".join((compact(plain).encode(), b"", b'{"eos_token_id":1}', b"ab \xc0")))
    for name, pattern in (("nested", "(?:(?:a+)+)+$"), ("range", "[\\p{L}-z&&[^a]]"), ("escapes", "\\x{41}\\u0042\\d\\S"),
                          ("lookbehind", "(?<=a)b|(?!c)d"), ("counts", "a{1,}b{,3}c{2}")):
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
        one = plain | {"pre_tokenizer": {"type": "Sequence",
                                         "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}}
        write("tokenizer", "pattern_" + name, compact(one).encode() + b"\xff\xff\xff" + b"a" * 40)
    write("tokenizer", "deep", '{"a":' * 70 + "1" + "}" * 70)


def config(kind, **more):
    return {"model_type": kind, "architectures": [{"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
                                                  + "ForCausalLM"],
            "hidden_size": 4, "intermediate_size": 2, "num_attention_heads": 2, "num_hidden_layers": 1,
            "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
            "vocab_size": 3, "tie_word_embeddings": True, **more}


def hf_weights(kind):
    head = "model.layers.0."
    weights = {"model.embed_tokens.weight": [3, 4], "model.norm.weight": [4],
               head + "input_layernorm.weight": [4], head + "self_attn.q_proj.weight": [4, 4],
               head + "self_attn.k_proj.weight": [2, 4], head + "self_attn.v_proj.weight": [2, 4],
               head + "self_attn.o_proj.weight": [4, 4], head + "post_attention_layernorm.weight": [4],
               head + "mlp.gate_proj.weight": [2, 4], head + "mlp.up_proj.weight": [2, 4],
               head + "mlp.down_proj.weight": [4, 2]}
    if kind == "qwen2":
        weights |= {head + f"self_attn.{x}_proj.bias": [n] for x, n in (("q", 4), ("k", 2), ("v", 2))}
    if kind == "qwen3":
        weights |= {head + f"self_attn.{x}_norm.weight": [2] for x in "qk"}
    tensors = {}
    for name, shape in weights.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors[name] = ("BF16", shape, bytes(size))
    return tensors


def make_models():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32, "rope_theta": 10000.0}
    configs = {"llama": config("llama", rope_parameters=scaling),
               "llama_old": config("llama", rope_theta=1e4, rope_scaling=None, mlp_bias=False),
               "qwen2": config("qwen2", use_sliding_window=False, sliding_window=8),
               "qwen3": config("qwen3", head_dim=2, layer_types=["full_attention"], quantization_config=None),
               "huge": config("llama") | {"num_hidden_layers": 2**20, "hidden_size": 2**63}}
    for name, fields in configs.items():
        write("config_json", name, compact(fields))
        weights = hf_weights(fields["model_type"])
        index = b""
        if name == "qwen2":
            index = compact({"weight_map": dict.fromkeys(weights, "model.safetensors")}).encode()
        write("hf_folder", name, b"\xff".join((compact(fields).encode(), index, safetensors(weights))))
    elsewhere = compact({"weight_map": {"a": "../../etc/model.safetensors"}}).encode()
    write("hf_folder", "outside", b"\xff".join((compact(config("llama")).encode(), elsewhere, safetensors({}))))

    chatml = "{% if add_generation_prompt %}<|im_start|>system\\nYou are a helpful assistant.<|im_end|>"
    for name, source in (
        ("chatml", "<|im_start|><|im_end|>add_generation_prompt"), ("qwen2", chatml),
        ("llama3", "<|start_header_id|><|eot_id|>| trim add_generation_prompt"),
        ("list", compact({"chat_template": [{"name": "default", "template": chatml}]})),
        ("text", compact({"chat_template": chatml})), ("null", '{"chat_template":null}'),
    ):
        write("chat_template", name, source.encode() + b"\xff" + " <think>a</think>\n\u3000b".encode())


# Records, predictions, tables


def make_records():
    longbench = {"_id": "1", "dataset": "trec", "language": "en", "input": "q", "context": "c {input}",
                 "answers": ["a"], "all_classes": ["a", "b"], "length": 7}
    ruler = {"index": 0, "input": "text", "outputs": ["1", "2"], "length": 5}
    apart = {"context": "text", "question": "q", "answer_prefix": "p", "outputs": ["x"], "task": "vt"}
    write("jsonl", "longbench", "b" + compact(longbench) + "\n\n" + compact(longbench | {"dataset": "qasper_e"}))
    write("jsonl", "ruler", "a" + compact(ruler) + "\r\n" + compact(apart) + "\n")
    for i, (pred, answer) in enumerate((
        ("The cat, an apple", "a cat"), ("Type b\nand more", "b"), ("One sentence. Two \u00e9.", "one sentence"),
        ("# comment\nint x;", "int y;"), ("Summary:\nshort", "short one"), ("There are 3 of 4", "3"),
        ("Paris", "paris"), ("Paragraph 12 it is", "Paragraph 12"),
    )):
        line = {"pred": pred, "answers": [answer], "all_classes": ["a", "b", "ab"], "length": 4000}
        write("jsonl", f"predictions{i}", struct.pack("B", ord("`") + i) + compact(line).encode())
    write("jsonl", "deep", "a" + "[" * 3000)
    write("longbench_tables", "prompts", '{"trec":"{{{context}}}\\n{input}","qasper":"{context}"}')
    write("longbench_tables", "lengths", '{"trec":64,"qasper":128}')
    write("longbench_tables", "deep", '{"trec":' + "[" * 3000 + "]" * 3000 + "}")


def run_entry(arm, **more):
    return {"task": "t", "sample": 0, "arm": arm, "id": "0", "group": "g",
            "prompt": {"ids_sha256": "00", "tokens": 4, "untruncated": 5, "bos_count": 1, "stop_set": "2",
                       "chat_template": "none"},
            "timing": {"prefill": 0.5, "decode": 0.25, "decode_steps": 2, "prefill_stages": [0, 0, 0, 0, 0],
                       "decode_stages": [0, 0, 0, 0, 0]},
            "usage": [[True, 10, 1, 2, 3, 4, 5, 6]], **more}


def make_journals():
    head = compact({"kind": "model", "arms": ["dense", "sparse"]})
    reply = {"reply": {"ids": [1, 2], "text": "a", "score": 0.5, "answers": ["a"], "classes": [], "length": 3}}
    window = {"window": {"begin": 0, "end": 3, "scored_from": 1, "nll": "0000003f0000803f",
                         "kl": "0000003f0000803f", "delta_p": "0000003f0000803f", "same_top": "0001",
                         "hidden_error": [0.5]}}
    write("journal", "replies", "\n".join((head, compact(run_entry("dense", **reply)),
                                           compact(run_entry("sparse", **reply)), '{"event":"report"}')))
    write("journal", "windows", "\n".join((head, compact(run_entry("dense", **window)),
                                           compact(run_entry("sparse", **window)))))
    second = {"sample": 1, "group": "h"}
    write("journal", "samples", "\n".join((head, *(compact(run_entry(arm, **reply) | more)
                                                  for more in ({}, second) for arm in ("dense", "sparse")))))
    write("journal", "mixed", "\n".join((head, compact(run_entry("dense", **reply)),
                                         compact(run_entry("dense", **window) | second))))
    short = window["window"] | {"kl": "0000003f", "hidden_error": [0.5, 0.5]}
    write("journal", "contradiction", "\n".join((head, compact(run_entry("sparse", window=short)))))
    write("journal", "other_run", compact({"kind": "model", "arms": [], "files": {"a": 1}}))
    write("journal", "raw", "sketchwalk-journal 2 0123456789abcdef {}\n0123456789abcdef {}\n")
    write("journal", "raw_torn", "sketchwalk-jour")
    write("journal", "raw_version", "sketchwalk-journal 1 0123456789abcdef {}\n")
    write("journal", "deep", head + "\n" + '{"a":' * 65 + "1" + "}" * 65)


# Reports


def shrink(value, longest=2):
    if isinstance(value, dict):
        return {key: shrink(child) for key, child in value.items()}
    if isinstance(value, list):
        return [shrink(child) for child in value[:longest]]
    return value


def make_reports():
    reports = {name: json.loads((ROOT / "results" / (name + ".json")).read_text())
               for name in ("smollm2-wikitext-8k", "smollm2-niah", "qwen-text-32k", "epyc-d128")}
    reports["score"] = {
        "schema_version": 1, "created": "2026-01-01T00:00:00Z", "command": ["sw-eval", "score"],
        "environment": {}, "benchmark": "longbench",
        "tasks": [{"task": "trec", "status": "ok", "reason": None, "metric": "classification",
                   "score": 50.0, "samples": 2, "interval": {"mean": 50.0, "low": 0.0, "high": 100.0},
                   "scores": [0.0, 1.0]}]}
    for name, report in reports.items():
        text = compact(shrink(report))
        write("report", name, text)
        write("report_page", name, text)
    hostile = shrink(reports["smollm2-niah"])
    hostile["command"] = ["</script><script>alert(1)</script>", "<!--", "\u2028"]
    hostile["cells"][1]["method"] = "</script>:a=b"
    write("report_page", "markup", compact(hostile))
    write("report", "deep", '{"protocol":{"kind":"trace"},"a":' + '{"a":' * 20 + "1" + "}" * 21)


def make_specs():
    for i, spec in enumerate((
        "dense", "sketchwalk", "sketchwalk:preset=preprint,sketch_dim=64,walk=none,budget=fixed,tau=4",
        "sketchwalk:hadamard=unbiased,temperature=1,causal_sketch=true,key_pool=1", "oracle:granularity=head",
        "random:dense_layers=0", "quest:dense_layers=1,min_blocks=3", "twilight:p=0.9", "magicpig",
        "flexprefill", "xattention", "vertical_slash", "tri_shape", "snapkv", "h2o", "tova",
        "sketchwalk:damping=1e-300,sharpness=8",
    )):
        write("method_spec", f"spec{i:02}", spec)
    write("method_spec", "file", json.dumps({
        "description": "d", "source": "s", "method": "sketchwalk",
        "options": {"preset": "preprint", "sketch_dim": 64, "damping": 0.5, "partial_mean": True}}))
    write("method_spec", "file_list", '{"method":"quest","options":{"page":[16,"32"]}}')
    for i, text in enumerate((
        "mass_recall<0.8@sketchwalk@0.2", "latency>=1e3", "output_error<=inf",
        "lengths=1024+2048,depths=0+0.5+1,needles=2,samples=3,seed=4", "samples=0",
        "lengths=9223372036854775807",
    )):
        write("gate_and_task", f"text{i}", text)


# Sweeps


def make_sweeps():
    write("experiment", "trace", compact({
        "description": "d", "command": "trace", "files": ["a.h5"], "method": ["sketchwalk:damping=0|0.25,degree=1|3"],
        "density": "0.05:0.5:0.05", "phase": "prefill", "layers": "2:4", "block": 32, "no-attribution": True}))
    write("experiment", "model", compact({
        "command": "model", "model": "m.gguf", "task": ["niah:depths=0+1"], "method": ["dense"],
        "density": ["0.1,0.2", "0.3"], "context": 64, "limit": 2, "kl": True, "protocol": "release"}))
    write("experiment", "unknown", '{"command":"trace","densities":[0.1]}')
    write("experiment", "endless", '{"command":"trace","density":"1e-300:1:1e-300","method":["a:' +
          ",".join(f"o{i}=1|2" for i in range(40)) + '"]}')

    def pack(kind, *values):
        return base64.b64encode(struct.pack(f"<{len(values)}{kind}", *values)).decode()

    array = [1, 2, 0.5]
    metrics = dict.fromkeys(("mass_recall", "oracle_gap", "output_error", "cosine", "oracle_gap_set", "topk_recall"),
                            array)
    selection = {"geometry": [4, 0, 8], "groups": 1, "token_parts": [0, 0], "row_ptr": pack("q", 0, 1, 2),
                 "block": pack("i", 0, 1), "part": pack("B", 0, 1), "token_ptr": pack("q", 0, 0, 1),
                 "token": pack("i", 1), "token_part": pack("B", 2)}
    cell = {"method": "dense", "name": "dense", "density": 0.5, "phase": "prefill", "block": 4, "row_sets": 1,
            "selects_keys": True, "shares_scores": True, "has_own_scores": True,
            "layer": [True, 10, 1, 2, 3, 4, 5, 6, [0.5]],
            "metrics": metrics, "density_rows": [1, 2, pack("f", 0.5, 1.0)], "answer_recall": None,
            "attribution": {"specs": ["a"] * 9, "recall": [array] * 9},
            "times": [[-1, True, 0.1, 0.2, 0.3, 0.4, 0.5]], "saved": {"selections": [selection], "scores": 0}}
    seconds = dict.fromkeys(("read", "rebuild", "dense", "scores", "metrics", "total", "attention", "separate"), 0.5)
    entry = {"unit": [0, 2], "cells": [cell], "scores": [[1, 1, 2, pack("f", 0.5, 0.25)]], "seconds": seconds}
    write("layer_entry", "whole", compact(entry))
    write("layer_entry", "failed", compact(entry | {"cells": [{
        key: cell[key] for key in ("method", "name", "density", "phase", "block")} | {"failed": "reason"}]}))
    write("layer_entry", "huge", compact(entry | {"cells": [cell | {"density_rows": [2**13, 2**13, 0.5]}]}))


# Dictionaries


def make_dictionaries():
    """The words of each corpus, which mutations can then put anywhere."""
    folder = HERE / "dictionaries"
    folder.mkdir(exist_ok=True)
    for target in ("chat_template", "config_json", "experiment", "gate_and_task", "gguf", "hf_folder", "journal",
                   "jsonl", "layer_entry", "longbench_tables", "method_spec", "report", "report_page", "safetensors",
                   "tokenizer", "trace_safetensors"):
        words = set()
        for file in sorted((CORPUS / target).iterdir()):
            if not file.name.startswith("found-"):
                words |= set(re.findall(rb"[A-Za-z<|][A-Za-z0-9_.|>]{2,39}", file.read_bytes()))
        lines = [f'"{word.decode()}"\n' for word in sorted(words)]
        (folder / f"{target}.dict").write_text("".join(lines))


def main():
    for folder in CORPUS.glob("*"):
        for file in folder.iterdir():
            if not file.name.startswith("found-"):
                file.unlink()
    make_gguf()
    make_safetensors()
    make_hdf5()
    make_tokenizers()
    make_models()
    make_records()
    make_journals()
    make_reports()
    make_specs()
    make_sweeps()
    make_dictionaries()


if __name__ == "__main__":
    main()
