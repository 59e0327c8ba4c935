#!/usr/bin/env python3
"""Writes tests/data/trace/*.h5: small traces that other programs could write, good ones in unusual
encodings and bad ones, each wrong in one way. Needs h5py and numpy (Debian: python3-h5py).

    /usr/bin/python3 tests/data/make_trace_files.py

All hold 2 layers (3 and 4), 4 query and 2 KV heads, dimension 8, 6 + 2 tokens. The value of layer l,
tensor n (q, k, v = 0, 1, 2), head h, token t, component c is
((7h + 3t + 5c + 11l + 13n) mod 64 - 32) / 16, exact in every dtype.
"""

import os

import h5py
import numpy as np

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "trace")
LAYERS = (3, 4)
TOKENS = 8
DIM = 8


def values(layer, n):
    heads = 4 if n == 0 else 2
    h, t, c = np.ogrid[:heads, :TOKENS, :DIM]
    return (((7 * h + 3 * t + 5 * c + 11 * layer + 13 * n) % 64 - 32) / 16).astype(np.float32)


def stored(array, dtype, order):
    if dtype == "bf16":
        return (array.view(np.uint32) >> 16).astype(order + "u2")
    return array.astype(order + ("f2" if dtype == "f16" else "f4"))


def write(name, dtype="f32", order="<", change=None, **options):
    """A good trace; change(file) makes it bad."""
    libver = "earliest" if name.startswith("good") else ("v110", "v110")
    with h5py.File(os.path.join(FOLDER, name + ".h5"), "w", libver=libver) as f:
        f.attrs.update({
            "format": "sketchwalk-trace", "version": 1, "model": "formula", "num_layers": 2,
            "first_layer": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": DIM,
            "prefill_tokens": 6, "total_tokens": TOKENS, "dtype": dtype, "rope_applied": 1,
            "source": "make_trace_files.py", "created_by": "h5py",
        })
        for layer in LAYERS:
            for n, tensor in enumerate("qkv"):
                dataset = f.create_dataset(f"layers/{layer:02d}/{tensor}",
                                           data=stored(values(layer, n), dtype, order), **options)
                if dtype == "bf16":
                    dataset.attrs["dtype"] = "bf16"
        f["tokens"] = np.arange(10, 10 + TOKENS).astype(order + "i4")
        f["answer_span"] = np.array([[1, 3], [6, 8]]).astype(order + "i8")
        f["text"] = "Größe: 7"
        if change:
            change(f)


def attribute(name, value):
    def change(f):
        f.attrs[name] = value
    return change


def without(name):
    def change(f):
        del f.attrs[name]
    return change


def replace(path, data=None, **options):
    def change(f):
        del f[path]
        f.create_dataset(path, data=data, **options)
    return change


def poke(path, index, value):
    def change(f):
        f[path][index] = value
    return change


def fixed_strings(f):
    """Attributes as other libraries write them: fixed-length text, small and boolean integers."""
    for name in ("format", "model", "dtype", "source", "created_by"):
        f.attrs[name] = np.bytes_(f.attrs[name])
    f.attrs["rope_applied"] = True
    f.attrs["version"] = np.uint8(1)
    f.attrs["num_heads"] = np.array([4], dtype=">i2")
    del f["text"]
    f["text"] = np.bytes_("Größe: 7".encode())


def soft_link(f):
    f.move("layers/04/k", "elsewhere")
    f["layers/04/k"] = h5py.SoftLink("/elsewhere")


def external_link(f):
    del f["layers/04/k"]
    f["layers/04/k"] = h5py.ExternalLink("/etc/passwd", "/k")


def external_storage(f):
    del f["layers/04/k"]
    f.create_dataset("layers/04/k", (2, TOKENS, DIM), "<f4", external=[("/etc/passwd", 0, 512)])


def virtual(f):
    del f["layers/04/k"]
    layout = h5py.VirtualLayout((2, TOKENS, DIM), "<f4")
    layout[...] = h5py.VirtualSource("other.h5", "k", (2, TOKENS, DIM))
    f.create_virtual_dataset("layers/04/k", layout)


def rename_layer(f):
    f.move("layers/04", "layers/4")


os.makedirs(FOLDER, exist_ok=True)
for dt in ("bf16", "f16", "f32"):
    write("good_little_" + dt, dt)
    write("good_big_" + dt, dt, ">", chunks=(2, 3, DIM), compression="gzip", shuffle=True)
write("good_fixed_strings", "f16", change=fixed_strings, chunks=(1, 8, DIM), fletcher32=True)
write("good_userblock", change=None)
with open(os.path.join(FOLDER, "good_userblock.h5"), "r+b") as raw:
    content = raw.read()
with h5py.File(os.path.join(FOLDER, "block.h5"), "w", userblock_size=512) as block:
    with h5py.File(os.path.join(FOLDER, "good_userblock.h5"), "r") as plain:
        block.attrs.update(plain.attrs)
        for member in plain:
            plain.copy(member, block)
os.replace(os.path.join(FOLDER, "block.h5"), os.path.join(FOLDER, "good_userblock.h5"))

q = values(4, 0)
write("bad_no_format", change=without("format"))
write("bad_format_type", change=attribute("format", 5))
write("bad_version", change=attribute("version", 2))
write("bad_version_zero", change=attribute("version", 0))
write("bad_zero_tokens", change=attribute("total_tokens", 0))
write("bad_zero_heads", change=attribute("num_heads", 0))
write("bad_negative_dim", change=attribute("head_dim", -8))
write("bad_group", change=attribute("num_kv_heads", 3))
write("bad_prefill", change=attribute("prefill_tokens", 9))
write("bad_dtype_name", change=attribute("dtype", "f64"))
write("bad_dtype", change=attribute("dtype", "f16"))
write("bad_number", change=attribute("num_layers", "two"))
write("bad_overflow", change=attribute("total_tokens", 2**62))
write("bad_many_layers", change=attribute("num_layers", 2**31))
write("bad_rope", change=attribute("rope_applied", 0))
write("bad_no_rope", change=without("rope_applied"))
write("bad_missing_layer", change=lambda f: f.__delitem__("layers/03"))
write("bad_no_layers", change=lambda f: f.__delitem__("layers"))
write("bad_missing_tensor", change=lambda f: f.__delitem__("layers/04/v"))
write("bad_extra_layer", change=lambda f: f.create_group("layers/05"))
write("bad_layer_name", change=rename_layer)
write("bad_layer_is_dataset", change=replace("layers/04", q))
write("bad_tensor_is_group",
      change=lambda f: (f.__delitem__("layers/04/q"), f.create_group("layers/04/q")))
write("bad_shape", change=replace("layers/04/q", q[:, :7]))
write("bad_rank", change=replace("layers/04/q", q.reshape(4, -1)))
write("bad_signed", "bf16", change=replace("layers/04/q", q.astype("<i2")))
write("bad_double", change=replace("layers/04/q", q.astype("<f8")))
write("bad_element_dtype", change=lambda f: f["layers/04/q"].attrs.__setitem__("dtype", "bf16"))
write("bad_nan", change=poke("layers/04/k", (1, 5, 2), np.nan))
write("bad_inf", "f16", change=poke("layers/03/v", (0, 7, 7), -np.inf))
write("bad_tokens_length", change=replace("tokens", np.arange(7, dtype="<i4")))
write("bad_tokens_type", change=replace("tokens", np.arange(8, dtype="<f4")))
write("bad_token", change=poke("tokens", 2, -5))
write("bad_span", change=poke("answer_span", (1, 1), 9))
write("bad_span_order", change=poke("answer_span", 0, (3, 3)))
write("bad_span_shape", change=replace("answer_span", np.zeros((2, 3), "<i8")))
write("bad_text", change=replace("text", np.zeros(3)))
write("bad_text_count", change=replace("text", ["a", "b"]))
write("bad_unwritten", change=replace("layers/04/q", shape=(4, TOKENS, DIM), dtype="<f4",
                                      chunks=(4, 1, DIM)))
write("bad_soft_link", change=soft_link)
write("bad_external_link", change=external_link)
write("bad_external_storage", change=external_storage)
write("bad_virtual", change=virtual)
write("bad_filter", change=replace("layers/04/q", q, chunks=(4, 8, DIM), compression="lzf"))


def huge(f):
    """A petabyte by its extents, a few kilobytes in the file."""
    f.attrs["total_tokens"] = 2**40
    for layer in LAYERS:
        for tensor, heads in (("q", 4), ("k", 2), ("v", 2)):
            del f[f"layers/{layer:02d}/{tensor}"]
            f.create_dataset(f"layers/{layer:02d}/{tensor}", (heads, 2**40, DIM), "<f4",
                             chunks=(1, 2**20, DIM), compression="gzip")


write("bad_huge", change=huge)
