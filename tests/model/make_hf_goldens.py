"""Writes tests/model/golden/hf_*: tiny random checkpoints and what transformers computes with them.

Needs the PyPI packages gguf, numpy, safetensors, torch, transformers. For each family there is a
folder as save_pretrained writes it, for two of them also a GGUF file with the same weights, and
hf_<name>.expected: a safetensors file with a prompt, its logits in f32 (the weights as they are
stored), the greedy continuation and the inverse frequencies of RoPE.

  python3 tests/model/make_hf_goldens.py
"""
import json
import pathlib
import shutil

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "golden"
PROMPT, GREEDY, VOCABULARY, CONTEXT = 96, 64, 288, 256
COMMON = dict(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, attn_implementation="eager",
              bos_token_id=1, eos_token_id=2)
# `seed` is the first whose greedy text is varied and has no near ties.
FAMILIES = {
    # Head dimension 16 and base 10000: waves of 6 to 20000 tokens, with an original context of 32
    # some are kept, one is between, the others are stretched.
    "llama": dict(
        seed=11, model="Llama", dtype=torch.bfloat16, gguf="llama",
        config=dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, head_dim=16,
                    num_attention_heads=3, num_key_value_heads=1, rms_norm_eps=1e-5,
                    tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0,
                                         low_freq_factor=1.0, high_freq_factor=4.0,
                                         original_max_position_embeddings=32))),
    "qwen3": dict(
        seed=711, model="Qwen3", dtype=torch.float16, gguf="qwen3",
        config=dict(hidden_size=32, intermediate_size=56, num_hidden_layers=3, head_dim=24,
                    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    "qwen2": dict(
        seed=39, model="Qwen2", dtype=torch.float32, shards="40KB",
        config=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    "smollm2": dict(
        seed=260, model="Llama", dtype=torch.float32, old_config=True,
        config=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, rms_norm_eps=1e-5,
                    num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
                    rope_parameters=dict(rope_type="default", rope_theta=100000.0))),
}


def make_model(family, seed):
    """Weights as they will be stored; far from zero, so that the greedy text goes on changing."""
    config = getattr(transformers, family["model"] + "Config")(**COMMON, **family["config"])
    model = getattr(transformers, family["model"] + "ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.35 * noise)
            parameter.copy_(parameter.to(family["dtype"]).float())
    return model


@torch.no_grad()
def expected(model, seed):
    """The tensors of hf_<name>.expected, and the smallest lead of a greedy choice."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (1, PROMPT), generator=generator)
    logits = model(ids, use_cache=False).logits[0]
    greedy, lead, last = [], float("inf"), logits[-1]
    while len(greedy) < GREEDY:
        top = last.topk(2)
        lead = min(lead, (top.values[0] - top.values[1]).item())
        greedy.append(top.indices[0].item())
        text = torch.cat([ids, torch.tensor([greedy])], dim=1)
        last = model(text, use_cache=False).logits[0, -1]
    tensors = dict(prompt=ids[0].int(), logits=logits, greedy=torch.tensor(greedy).int(),
                   inverse_frequencies=model.model.rotary_emb.inv_freq.clone())
    return tensors, lead


def write_old_config(path):
    """The same configuration as transformers 4 wrote it."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    assert rope.pop("rope_type") == "default"
    config.update(rope_theta=rope.pop("rope_theta"), rope_scaling=None, rope_interleaved=False,
                  torch_dtype=config.pop("dtype"), transformers_version="4.42.3")
    assert not rope
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def permute(weight, heads):
    """Rows in the order of GGUF's llama: pairs of neighbours instead of halves."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write_gguf(path, model, arch, dtype):
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    kinds = {torch.bfloat16: gguf.GGMLQuantizationType.BF16,
             torch.float16: gguf.GGMLQuantizationType.F16}
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()),
                                     config.num_hidden_layers)
    for name, value in model.state_dict().items():
        array = value.numpy()
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            array = permute(array, array.shape[0] // config.head_dim)
        kind = gguf.GGMLQuantizationType.F32 if array.ndim == 1 else kinds[dtype]
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")),
                          gguf.quants.quantize(array, kind), raw_dtype=kind)
    if config.rope_parameters["rope_type"] == "llama3":
        plain = 10000.0 ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
        divisors = plain / model.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    for name, family in FAMILIES.items():
        for seed in range(family["seed"], 1000):
            model = make_model(family, seed)
            tensors, lead = expected(model, seed)
            variety = len(set(tensors["greedy"].tolist()))
            if lead > 0.05 and variety > GREEDY // 2:
                break
        folder = OUT / f"hf_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        stored = model.to(family["dtype"])
        stored.save_pretrained(folder, max_shard_size=family.get("shards", "1GB"))
        (folder / "generation_config.json").unlink()
        if family.get("old_config"):
            write_old_config(folder / "config.json")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager")
        again, _ = expected(loaded, seed)
        assert torch.equal(again["logits"], tensors["logits"])
        save_file(tensors, OUT / f"hf_{name}.expected")
        exact = loaded.double()(tensors["prompt"][None].long(), use_cache=False).logits[0]
        print(name, "seed", seed, "lead", lead, "different tokens", variety, "largest logit",
              tensors["logits"].abs().max().item(), "f32 error",
              (exact - tensors["logits"]).abs().max().item(), sorted(folder.iterdir()))
        if "gguf" in family:
            write_gguf(OUT / f"hf_{name}.gguf", loaded.float(), family["gguf"], family["dtype"])


if __name__ == "__main__":
    main()
