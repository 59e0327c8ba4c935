"""Writes tests/model/golden/: expected values for lib/model from independent implementations.

Needs the PyPI packages gguf, numpy, torch, transformers, tokenizers, jinja2. Shares no code with the
C++ sources: dequantisation is that of the gguf package, token ids are those of Hugging Face's
tokenizers, logits, Q, K and V those of its llama and qwen2 models in f32 on random weights.

  python3 tests/model/make_goldens.py TEXT_FILE    (any English text of 100 KB or more, for merges)
"""
import json
import pathlib
import sys

import gguf
import jinja2
import numpy as np
import torch
import transformers
from gguf.quants import dequantize
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

OUT = pathlib.Path(__file__).parent / "golden"
STRINGS = [
    "Hello  world\n\n\tÉmile's 😀 naïve café — 123456 don't we'll 你好，世界 \r\n x=1;  ",
    "", " ", "  ", "   x", "\n", "\n\n\n", "\r\n\r\n", "\t\t\tif (x) {\r\n\t}\n",
    "trailing   \n  spaces   ", "I'M YOU'RE we'Ve they'd '’s 'ſ", "3.14159 1,000,000 0x1F600 ١٢٣ ²³ Ⅷ ½",
    "a\u00a0b\u2003c\u3000d\u200be\ufefff\u180eg\u0085h", "e\u0301 vs \u00e9, A\u030a vs \u00c5",
    "👩‍👩‍👧‍👦 🇫🇷 👍🏽", "العربية हिन्दी ไทย 한국어 日本語 русский ελληνικά עברית",
    "____----====....!!!!????", "foo_bar->baz::qux<T&&>(\"str\\n\", 'c');",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>", "\u0000\u0001\u007f", "a" * 60,
    "supercalifragilisticexpialidocious", "  indented\n    more\n\tand tab 12 345",
    "x 1 2  3   4\n5", "‘quoted’ “text” … 5€ £10 ¥", "the then there these thesis the the",
]


def write(name, value):
    (OUT / name).write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


def quant():
    """Two random blocks of every type; scales are ordinary half floats, all other bits random."""
    rng = np.random.default_rng(1)
    half_offsets = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
                    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
    out = {}
    for name in ["F32", "F16", "BF16", *half_offsets]:
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        if name == "F32":
            data = rng.standard_normal(8).astype(np.float32).view(np.uint8)
        elif name == "F16":
            data = np.array([0, 1, -2.5, 6e-8, -65504, 0.1, 3e-5, 7], np.float16).view(np.uint8)
        elif name == "BF16":
            data = (rng.standard_normal(8).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            data = data.view(np.uint8)
        else:
            data = rng.integers(0, 256, 2 * size, dtype=np.uint8)
            for block in range(2):
                for offset in half_offsets[name]:
                    scale = np.float16(rng.uniform(-0.1, 0.1))
                    at = block * size + offset
                    data[at:at + 2] = np.frombuffer(scale.tobytes(), np.uint8)
        values = dequantize(data, kind).reshape(-1).astype(np.float64)
        out[name] = {"bytes": data.tobytes().hex(), "values": values.tolist()}
    write("quant.json", out)


PATTERNS = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
             r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                 r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def pre_tokenizer(name):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in ("gpt2", "smollm"))
    if name == "gpt2":
        return byte_level
    first = (pre_tokenizers.Digits(individual_digits=True) if name == "smollm" else
             pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated"))
    return pre_tokenizers.Sequence([first, byte_level])


SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def train(text):
    """(tokens, merges): 3 specials, 256 bytes and merges, 480 tokens in all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer("llama-bpe")
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=SPECIALS, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([text], trainer)
    state = json.loads(tokenizer.to_str())["model"]
    tokens = [t for t, _ in sorted(state["vocab"].items(), key=lambda item: item[1])]
    return tokens, [" ".join(m) for m in state["merges"]]


def make_tokenizer(tokens, merges, pre):
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)},
                                     [tuple(m.split(" ")) for m in merges],
                                     ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    return tokenizer


def tokenizers_golden(tokens, merges):
    out = {"tokens": tokens, "merges": merges, "specials": SPECIALS, "strings": STRINGS, "plain": {},
           "parsed": {}}
    for pre in ["smollm", "gpt2", "qwen2", "llama-bpe"]:
        tokenizer = make_tokenizer(tokens, merges, pre)
        out["plain"][pre] = [tokenizer.encode(s, add_special_tokens=False).ids for s in STRINGS]
        tokenizer.add_special_tokens(SPECIALS)
        out["parsed"][pre] = [tokenizer.encode(s, add_special_tokens=False).ids for s in STRINGS]
    write("tokenizer.json", out)


CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
          " + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
          "{{ '<|im_start|>assistant\n' }}{% endif %}")
DEFAULT = ("{{% for message in messages %}}{{% if loop.first and messages[0]['role'] != 'system' %}}"
           "{{{{ '<|im_start|>system\n{}<|im_end|>\n' }}}}{{% endif %}}"
           "{{{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}}}"
           "{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}")
QWEN25 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = ("{% set loop_messages = messages %}{% for message in loop_messages %}"
          "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
          "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
          "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
          "{% endif %}")
CHATS = [
    [{"role": "user", "content": "Hi there"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is 2+2? "},
     {"role": "assistant", "content": "4"}, {"role": "user", "content": "And 10*12?\n"}],
    [{"role": "user", "content": "\u00a0\n wide \u3000"}, {"role": "system", "content": "late"}],
    [{"role": "user", "content": ""}],
]


def chat():
    templates = {
        "chatml": CHATML,
        "smollm2": DEFAULT.format("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        "qwen2": DEFAULT.format("You are a helpful assistant."),
        "qwen2.5": QWEN25,
        "llama3": LLAMA3,
    }
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    out = []
    for name, text in templates.items():
        for messages in CHATS:
            for prompt in [False, True]:
                rendered = env.from_string(text).render(
                    messages=messages, add_generation_prompt=prompt, bos_token="<|begin_of_text|>")
                out.append({"name": name, "jinja": text, "messages": messages, "prompt": prompt,
                            "rendered": rendered})
    write("chat.json", out)


HIDDEN, FFN, HEADS, KV_HEADS, LAYERS, HEAD_DIM = 32, 48, 4, 2, 2, 8


def capture(calls):
    def attention(module, query, key, value, mask, scaling, **kwargs):
        calls.append([x[0].tolist() for x in (query, key, value)])
        key, value = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (key, value))
        n = query.shape[2]
        logits = (query @ key.transpose(-1, -2)) * scaling
        logits = logits.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
        return (logits.softmax(-1) @ value).transpose(1, 2).contiguous(), None
    return attention


def permute(weight, heads):
    """Rows of Q or K from Hugging Face's order to GGUF's, as llama converters do."""
    return weight.reshape(heads, 2, HEAD_DIM // 2, -1).swapaxes(1, 2).reshape(weight.shape)


@torch.no_grad()
def tiny(arch, tokens, merges):
    torch.manual_seed(7)
    common = dict(hidden_size=HIDDEN, intermediate_size=FFN, num_attention_heads=HEADS,
                  num_key_value_heads=KV_HEADS, num_hidden_layers=LAYERS, vocab_size=len(tokens),
                  max_position_embeddings=256, rms_norm_eps=1e-5,
                  rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
                  tie_word_embeddings=arch == "llama", attn_implementation="capture")
    calls = []
    ALL_ATTENTION_FUNCTIONS.register("capture", capture(calls))
    if arch == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**common))
    else:
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**common))
    model = model.float().eval()
    for parameter in model.parameters():  # values that bf16 holds exactly
        scale = 0.5 if parameter.ndim == 2 else 1.0
        parameter.copy_((torch.randn_like(parameter) * scale).bfloat16().float())

    writer = gguf.GGUFWriter(str(OUT / f"tiny_{arch}.gguf"), arch)
    writer.add_name(f"tiny {arch}")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if arch == "llama" else "qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in SPECIALS else 1 for t in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)

    def add(name, parameter, heads=0):
        values = parameter.numpy()
        if heads and arch == "llama":
            values = permute(values, heads)
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            bits = (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
            writer.add_tensor(name, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    add("token_embd.weight", model.model.embed_tokens.weight)
    add("output_norm.weight", model.model.norm.weight)
    if arch == "qwen2":
        add("output.weight", model.lm_head.weight)
    for i, layer in enumerate(model.model.layers):
        blk = f"blk.{i}."
        add(blk + "attn_norm.weight", layer.input_layernorm.weight)
        add(blk + "ffn_norm.weight", layer.post_attention_layernorm.weight)
        add(blk + "attn_q.weight", layer.self_attn.q_proj.weight, HEADS)
        add(blk + "attn_k.weight", layer.self_attn.k_proj.weight, KV_HEADS)
        add(blk + "attn_v.weight", layer.self_attn.v_proj.weight)
        add(blk + "attn_output.weight", layer.self_attn.o_proj.weight)
        if arch == "qwen2":
            for x in "qkv":
                add(blk + f"attn_{x}.bias", getattr(layer.self_attn, f"{x}_proj").bias)
        add(blk + "ffn_gate.weight", layer.mlp.gate_proj.weight)
        add(blk + "ffn_up.weight", layer.mlp.up_proj.weight)
        add(blk + "ffn_down.weight", layer.mlp.down_proj.weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    ids = [(7 * i * i + 3 * i + 5) % len(tokens) for i in range(23)]
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    nll = torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(ids[1:]),
                                            reduction="none")
    layers = [dict(zip("qkv", call)) for call in calls]
    write(f"tiny_{arch}.json", {"ids": ids, "last_logits": logits[-1].tolist(), "nll": nll.tolist(),
                                "layers": json.loads(json.dumps(layers), parse_float=lambda x:
                                                     float(f"{float(x):.7g}"))})


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    quant()
    trained = train(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")[:400_000])
    tokenizers_golden(*trained)
    chat()
    for architecture in ["llama", "qwen2"]:
        tiny(architecture, *trained)
