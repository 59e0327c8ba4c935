"""Writes tests/model/golden/<model>.json: what Hugging Face's transformers computes in f32 from the
GGUF files of the two models that the tests know. Needs torch, transformers, tokenizers and gguf.

  python3 tests/model/make_model_goldens.py MODEL_DIR TEXT_FILE [LENGTH...]

MODEL_DIR holds smollm2.gguf and qwen2.5-coder-0.5b.gguf, TEXT_FILE is wikitext-2.test.txt. LENGTH:
windows of the perplexity, by default 512 2048 8192. One window, no tokens added, mean over
positions 1..n-1. transformers ignores tokenizer.ggml.pre = smollm, so that one is set by hand. Token
ids are without Unicode normalisation, as in the files.
"""
import json
import math
import pathlib
import sys

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

OUT = pathlib.Path(__file__).parent / "golden"
STRINGS = [
    "Hello  world\n\n\tÉmile's 😀 naïve café — 123456 don't we'll 你好，世界 \r\n x=1;  ",
    "", " ", "  ", "   x", "\n", "\n\n\n", "\r\n\r\n", "\t\t\tif (x) {\r\n\t}\n",
    "trailing   \n  spaces   ", "I'M YOU'RE we'Ve they'd '’s",
    "3.14159 1,000,000 0x1F600 ١٢٣ ²³ Ⅷ ½ 1st 2nd", "a\u00a0b\u2003c\u3000d\u200be\ufefff",
    "e\u0301 vs \u00e9, A\u030a vs \u00c5", "👩‍👩‍👧‍👦 🇫🇷 👍🏽",
    "العربية हिन्दी ไทย 한국어 日本語 русский ελληνικά עברית", "____----====....!!!!????",
    "foo_bar->baz::qux<T&&>(\"str\\n\", 'c');", "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "<tool_call>{\"a\": 1}</tool_call>", "\u0000\u0001\u007f", "a" * 48,
    "supercalifragilisticexpialidocious", "  indented\n    more\n\tand tab 12 345",
    "x 1 2  3   4\n5", "‘quoted’ “text” … 5€ £10 ¥", "ﬁ ﬂ ß ẞ İ ı ſ",
]
CHATS = [
    [{"role": "user", "content": "Hi there"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is 2+2? "},
     {"role": "assistant", "content": "4"}, {"role": "user", "content": "And 10*12?\n"}],
]


@torch.no_grad()
def likelihoods(model, ids, chunk=256):
    """(negative log-likelihoods of ids[1:], hidden states)"""
    hidden = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    parts = []
    for begin in range(0, len(ids) - 1, chunk):
        end = min(begin + chunk, len(ids) - 1)
        logits = model.lm_head(hidden[begin:end]).float()
        target = torch.tensor(ids[begin + 1:end + 1])
        parts.append(torch.nn.functional.cross_entropy(logits, target, reduction="none").double())
    return torch.cat(parts), hidden


@torch.no_grad()
def greedy(model, ids, steps=32):
    chosen, margins, past, current = [], [], None, torch.tensor([ids])
    for _ in range(steps):
        result = model(input_ids=current, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = result.past_key_values
        top = result.logits[0, -1].float().topk(2)
        chosen.append(int(top.indices[0]))
        margins.append(round(float(top.values[0] - top.values[1]), 5))
        current = top.indices[:1][None]
    return chosen, margins


def run(folder, name, text, lengths):
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=f"{name}.gguf")
    if name == "smollm2":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=f"{name}.gguf",
                                                 dtype=torch.float32).eval()

    def encode(string):
        return tokenizer(string, add_special_tokens=False).input_ids

    ids = encode(text)
    out = {"wikitext": {"total_tokens": len(ids), "first_32_ids": ids[:32],
                        "last_16_ids": ids[-16:], "ids_sum_first_8192": sum(ids[:8192])},
           "chat": [], "perplexity": {}, "greedy": {},
           "strings": [{"text": s, "ids": encode(s)} for s in STRINGS]}
    for messages in CHATS:
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True,
                                                 tokenize=False)
        out["chat"].append({"messages": messages, "rendered": rendered, "ids": encode(rendered)})
    for length in lengths:
        nll, hidden = likelihoods(model, ids[:length])
        out["perplexity"][str(length)] = {"ppl": math.exp(nll.mean()), "mean_nll": float(nll.mean()),
                                          "first_16_nll": nll[:16].tolist(),
                                          "last_4_nll": nll[-4:].tolist()}
        print(name, length, math.exp(nll.mean()), flush=True)
        if length == 512:
            with torch.no_grad():
                logits = model.lm_head(hidden[-1]).float()
            out["logits_512_last"] = {"first_64": logits[:64].tolist(),
                                      "argmax": int(logits.argmax())}
    prompts = {"raw": "The capital of France is", "code": "def fibonacci(n):\n",
               "chat_hi": out["chat"][0]["rendered"]}
    for key, prompt in prompts.items():
        chosen, margins = greedy(model, encode(prompt))
        out["greedy"][key] = {"prompt": prompt, "prompt_ids": encode(prompt), "ids": chosen,
                              "top1_minus_top2": margins}
    return out


if __name__ == "__main__":
    window_lengths = [int(n) for n in sys.argv[3:]] or [512, 2048, 8192]
    content = pathlib.Path(sys.argv[2]).read_bytes().decode("utf-8")
    for model_name in ["smollm2", "qwen2.5-coder-0.5b"]:
        golden = run(sys.argv[1], model_name, content, window_lengths)
        (OUT / f"{model_name}.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
