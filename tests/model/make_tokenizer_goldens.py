"""Writes tests/model/golden/tokenizers/: small tokenizers of every family and the ids they give.

Needs the PyPI packages tokenizers and jinja2 (and gguf for the second use). The expected ids are those
of Hugging Face's tokenizers, the rendered chats those of Jinja.

  python3 tests/model/make_tokenizer_goldens.py TEXT_FILE     (any English text of 100 KB or more)
  python3 tests/model/make_tokenizer_goldens.py               (new ids with the tokenizers that are there)
  python3 tests/model/make_tokenizer_goldens.py --models FOLDER --data FOLDER   (ids of real vocabularies)

The last form writes data.json: for smollm2.gguf and qwen2.5-coder-0.5b.gguf the number and SHA-256 of
the ids (int32, little endian) of each file of the data folder: text/*.txt as a whole; of
longbench/*.jsonl and ruler/*.jsonl the first 20 records, one after the other, each as its context, an
empty line, and its input or question. Special tokens are plain text and nothing is normalised, as with
the GGUF files.
"""
import argparse
import hashlib
import json
import pathlib
import random
import struct

import jinja2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

OUT = pathlib.Path(__file__).parent / "golden" / "tokenizers"

CORPUS = [
    "", " ", "a", "\n", "\u0000", "\u0000\u0001\u0002\t\u001f\u007f\u0080\u0085\u009f", "x\u0000y \u0000 z",
    "👩‍👩‍👧‍👦👨🏽‍💻 🏳️‍🌈 🇫🇷🇩🇪 ☎️ ☎ 👍🏿👍", "😀😃 😄\u200d😁",
    "e\u0301 \u00e9 A\u030a \u00c5 \u212b n\u0303 \u00f1 o\u0302\u0323 o\u0323\u0302 \u1ed9",
    "a\u0315\u0300\u05ae\u0300b \u0061\u0301\u0315\u0300\u05ae\u0062 q\u0307\u0323 \u1e0b\u0323 d\u0323\u0307",
    "\u0344 \u0958 \u2126 \u0340\u0341 \u0374 \u037e \u0387 \ufb1d \ufb49 \u2adc",
    "\u1100\u1161\u11a8 \uac01 \uac00\u11a8 \u1100\u1161 한국어 \u1112\u1161\u11ab \u11a8\u1161\u1100",
    "ﬁ ﬀ ² ½ ① ㍿ ｱｲｳ Ａｂｃ ﷺ ℌ ㎏ \u3000x\u00a0y",
    "line\r\nline\r\n\r\n\r\rend\n\r\n \r\n\t\r\n  x", "\r", "\r\n", "\n\r", " \n \n\n  \n",
    "tabs\t\t\tand  spaces   and    more     \t mixed \t\t end\t",
    " " * 3 + "x" + " " * 17 + "y" + " " * 64, "\n" * 9 + "x" + "\n" * 2 + " " + "\n" * 3,
    "\u00a0\u2003\u3000\u2028\u2029\u200b\ufeff\u180e\u1680\u205f\u202f", "a\u2028b\u2029c \u2028 d",
    "\ufeffBOM at the begin and \ufeff inside\ufeff", "\ue000\ue001 \uf8ff \U000f0000 \U0010ffff \ufffd \ufffe",
    "العربية ١٢٣ ﻻ لَا مُحَمَّد؟", "ภาษาไทย ก็ น้ำ ๑๒๓ กำ", "हिन्दी क्षत्रिय १२३ বাংলা தமிழ்", "עברית שָׁלוֹם",
    "日本語テキスト、がカ゛が 中文字符。你好，世界！ 한글 조합", "Русский ёж Ёж й й ελληνικά ΐ ΐ", "ǅ ǈ ŉ ß ẞ İ ı ſ K",
    "mixedСкриптsаndζetc. latin中文kana かな123四五", "0", "7 42 123 1234 12345 123456 1234567 3.14159 1,000,000",
    "1" * 50 + "x" + "9" * 31, "٣٤٥٦ ⅧⅨ ²³¹ ¼½ 一二三 ๑๒๓๔ 𝟏𝟐𝟑", "0x1F600 1e-9 v2.0.1 2026-01-31T23:59:59Z",
    "I'm I'M we'Ve THEY'RE don'T it'S 's'S 'Ll 'd'D 'ſ ’s 't'T'rE''m", "can't've y'all'd o'clock rock'n'roll",
    "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_start|", "<|im_start|><|im_start|>x",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<|eot_id|> <| eot_id|><|eot_id|",
    "<think>\nhm\n</think>\n\nyes <tool_call>{}</tool_call> <think", "< |im_end|> <<|im_end|>> |im_end|>",
    "a<|im_end|>b  <|im_end|>  c\n<|im_end|>\n", "<|endoftext|><|endoftext|>e\u0301<|endoftext|>",
    "for (int i = 0; i < n; ++i) {\n\t\tx[i] += y->z(\"str\\n\", 'c');\r\n}\n", "____----====....!!!!????~~~~",
    "https://example.org/a?b=c&d=%20#frag user@example.org", "“quotes” ‘single’ – — … «» 5€ £10 ¥ ₹ ©®™",
    "ZWJ\u200d ZWNJ\u200c SHY\u00ad LRM\u200e\u202bRLE\u202c \u2060", "Z̸̢̛̝̰̈́͛a͉̘̥l̷̖g̶o̵͖ t̴e̸x̷t",
    "the then there these thesis the the", "antidisestablishmentarianism supercalifragilistic",
    "word[MASK]word [MASK]  [MASK] x [MASK]\n\nsoli solid soli, xsoli soli", "caf\u00e9 cafe\u0301 caf\u00e9s Xcaf\u00e9",
    "  lead [SEP] trail  [SEP]  ", "a--b---c;;d||e  f", "\u0301combining first", "\U0001d15e \U0001f100 \U00011099\U000110ba",
]

# Characters that are younger than the Unicode tables of some libraries, and those of old standing.
CORPUS += [
    "\u1c89\ua7cb\U00031350 \U0002ebf0x \U0001e030 \U00011f04 \U000105c9", "\U00010d40\U0001e4f0 1\U0001d2c0 2\U00011de0\U00016ff4",
    "a\u0897\u0301 a\U00010efd\u0301 a\u1abf\u0301 a\u1acf\u0323 a\u0898\u0327", "\U00011935\U00011930 \U00011938 \u09fe\u0981 \u1ac5\u0316",
    "\u32ff \U00010781 \U0001fbf5\U0001f16c \ua7f2 \uab69", "\u2427\u31e4 \U0001fae8\U0001f6dc \u1b4e\U00011f43 \U0001cc00",
    "a\u0378\u0379 \U000e0001\U000e0100 \ud7ff \ue000", "x\U00011f41\U00011f42 \U00016126\U00016127 \U000113c5\U000113c7",
    "\u1f82 \u0f73\u0f75\u0f81 \u0345\u0301 \u0f71\u0f72", "\u2000\u2001 \u1fef \u2329 \uf900 \U0002f800", "\u0958\u0959 \u0dda \u1b06 \u1026",
]
_rng = random.Random(44)
_pieces = list(CORPUS)
CORPUS += ["".join(_rng.choice(_pieces)[:_rng.randrange(1, 16)] for _ in range(_rng.randrange(2, 9))) for _ in range(160)]
_codes = [c for c in range(0x110000) if not 0xd800 <= c <= 0xdfff]
_marks = [0x61, 0x64f, 0x5b4, 0xe38, *range(0x300, 0x370), *range(0x898, 0x900), *range(0x1ab0, 0x1b00)]
CORPUS += ["".join(chr(_rng.choice(codes)) for _ in range(12)) for codes in (_codes, _codes[:0x3100], _marks) for _ in range(25)]

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(use_regex, prefix=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(pattern, behavior, invert)


def special(*texts):
    return [AddedToken(t, special=True, normalized=False) for t in texts]


CHATML = special("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOOLS = [AddedToken(t, special=False, normalized=False) for t in
         ["<tool_call>", "</tool_call>", "<think>", "</think>"]]
FAMILIES = {  # name: (normalizer, pre-tokenizer, ignore_merges, specials in the vocabulary, added tokens)
    "llama3": (None, pre_tokenizers.Sequence([split(Regex(LLAMA3)), byte_level(False)]), True, False,
               special("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "qwen2": (normalizers.NFC(), pre_tokenizers.Sequence([split(Regex(QWEN2)), byte_level(False)]), False, False,
              CHATML),
    "qwen3": (normalizers.NFC(), pre_tokenizers.Sequence([split(Regex(QWEN2)), byte_level(False)]), False, False,
              CHATML + TOOLS),
    "smollm2": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level(True)]), False, True, CHATML),
    "gpt2": (None, byte_level(True), False, False, special("<|endoftext|>")),
    # No model's: the rest of what is supported.
    "o200k": (normalizers.NFD(), pre_tokenizers.Sequence([split(Regex(O200K)), byte_level(False)]), False, False,
              CHATML),
    "mixed": (normalizers.Sequence([normalizers.NFD(), normalizers.NFKC()]),
              pre_tokenizers.Sequence([split("--", "removed"), split(Regex(r"[;|]+"), "removed"),
                                       pre_tokenizers.Digits(False), split(Regex(r"[一-龥぀-ヿ]+|\p{Han}")),
                                       byte_level(True, True)]), False, False,
              [AddedToken("[MASK]", special=True, normalized=False, lstrip=True),
               AddedToken("[SEP]", special=True, normalized=True, rstrip=True),
               AddedToken("soli", special=False, normalized=True, single_word=True),
               AddedToken("cafe\u0301", special=False, normalized=True, single_word=True),
               AddedToken("  ", special=False, normalized=False)]),
    "kept": (normalizers.NFKD(), pre_tokenizers.Sequence([split(Regex(QWEN2), "removed", True), byte_level(False)]),
             False, False, special("<|endoftext|>")),
    # Bytes that the training did not meet have no token of their own.
    "unknown": (None, byte_level(True), False, True, special("<unk>")),
}
LOSSY = ["mixed", "unknown"]  # decoding does not give the text back


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


def make(name, text):
    normalizer, pre, ignore_merges, in_vocabulary, added = FAMILIES[name]
    unknown = name == "unknown"
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True) if unknown else models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False, special_tokens=added if in_vocabulary else [],
                                  initial_alphabet=[] if unknown else pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([text] if unknown else [text] + CORPUS * 2, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = []
    state["model"]["ignore_merges"] = ignore_merges
    if ignore_merges:  # a word that no merge makes
        state["model"]["vocab"]["Ġantidisestablishmentarianism"] = len(state["model"]["vocab"])
    if name in ("gpt2", "qwen2"):  # the older form
        state["model"]["merges"] = [" ".join(m) for m in state["model"]["merges"]]
        state["model"]["continuing_subword_prefix"] = state["model"]["end_of_word_suffix"] = ""
    tokenizer = Tokenizer.from_str(json.dumps(state))
    for token in added:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    tokenizer.decoder = decoders.ByteLevel()
    level = processors.ByteLevel(trim_offsets=False)
    if name == "llama3":
        bos = "<|begin_of_text|>"
        tokenizer.post_processor = processors.Sequence([level, processors.TemplateProcessing(
            single=bos + " $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))])])
    else:
        tokenizer.post_processor = level
    final = json.loads(tokenizer.to_str())
    if name in ("gpt2", "qwen2"):
        final["model"]["merges"] = [" ".join(m) for m in final["model"]["merges"]]
    return final


def family(name, text):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    if text:
        write(folder / "tokenizer.json", make(name, text))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    out = {"lossy": name in LOSSY}
    for mode in ["parsed", "plain"]:
        tokenizer.encode_special_tokens = mode == "plain"
        out[mode] = [tokenizer.encode(s, add_special_tokens=False).ids for s in CORPUS]
    normal = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    out["normalized"] = [normal(s) for s in CORPUS]
    out["bos"] = tokenizer.encode("a").ids != tokenizer.encode("a", add_special_tokens=False).ids
    write(folder / "ids.json", out)


def tools(text):
    """As the templates of Qwen begin: what is rendered for tools, which these tests never give."""
    return "{%- if tools %}\n    {{- '" + text + "' }}\n{%- else %}\n"


QWEN3 = tools("<tools>") + r"""    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
CHATML_TOOLS = tools("<|im_start|>system\\n") + r"""    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""
DATE_31 = '{%- if not date_string is defined %}\n    {%- set date_string = "26 Jul 2024" %}\n{%- endif %}\n'
DATE_32 = """{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
"""
LLAMA31 = r"""{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""


def chats():
    def talk(*turns):
        names = {"s": "system", "u": "user", "a": "assistant"}
        return [{"role": names[role], "content": content} for role, content in turns]

    thought = "<think>\n\nhm, 2+2\n\n</think>\n\n\n4"
    conversations = [
        talk(("u", "Hi there")), talk(("s", " Be brief.\n"), ("u", " What is 2+2? \n")), talk(("s", "only")),
        talk(("u", "a"), ("a", thought), ("u", "b"), ("a", "plain"), ("u", "c\n")),
        talk(("u", "a"), ("a", thought)), talk(("u", "a"), ("a", "no thought")), talk(("u", "a"), ("a", "\n\nx\n")),
        talk(("s", "x"), ("u", "a"), ("a", thought), ("a", "<think>\n</think>z"), ("a", thought)),
        talk(("a", thought), ("a", thought)), talk(("u", "a"), ("s", "late"), ("a", "y</think>\n<think>z</think>w")),
        talk(("u", "a"), ("a", thought), ("u", "<tool_response>r</tool_response>"), ("a", thought)),
        talk(("u", "x</think>y"), ("a", "<think>open")), talk(("u", ""), ("a", "")),
        talk(("u", "\u00a0\u2028 wide \u3000\x1c"), ("a", "<think>a<think>b</think>c</think>d"), ("u", "\n")),
    ]
    templates = [("qwen3", QWEN3, True), ("qwen3-nothink", QWEN3, False), ("chatml", CHATML_TOOLS, True),
                 ("llama3.1", "{{- bos_token }}\n" + DATE_31 + LLAMA31, True),
                 ("llama3.1", "{{- bos_token }}\n" + DATE_32 + LLAMA31, True)]
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    out = []
    for name, jinja, thinking in templates:
        cases = []
        for messages in conversations:
            for prompt in [False, True]:
                extra = {} if thinking else {"enable_thinking": False}
                cases.append({"messages": messages, "prompt": prompt, "rendered": env.from_string(jinja).render(
                    messages=messages, add_generation_prompt=prompt, bos_token="<|begin_of_text|>", **extra)})
        out.append({"name": name, "jinja": jinja, "cases": cases})
    write(OUT / "chats.json", out)


def real_state(path):
    """A tokenizer with the vocabulary of a GGUF file of SmolLM2 or Qwen2.5."""
    import gguf
    fields = gguf.GGUFReader(path).fields
    tokens, types, merges, pre = (fields["tokenizer.ggml." + key].contents()
                                  for key in ["tokens", "token_type", "merges", "pre"])
    _, pre_tokenizer, _, in_vocabulary, _ = FAMILIES[{"smollm": "smollm2", "qwen2": "qwen3"}[pre]]
    plain = {t: i for i, t in enumerate(tokens) if in_vocabulary or types[i] == 1}
    tokenizer = Tokenizer(models.BPE(plain, [tuple(m.split(" ")) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types):
        if kind in (3, 4):
            add = tokenizer.add_special_tokens if kind == 3 else tokenizer.add_tokens
            add([AddedToken(token, special=kind == 3, normalized=False)])
    assert all(tokenizer.token_to_id(t) == i for i, t in enumerate(tokens) if types[i] in (1, 3, 4))
    return tokenizer


def texts_of(path):
    if path.suffix == ".txt":
        return [path.read_bytes().decode("utf-8")]
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line, _ in zip(lines, range(20))]
    return [r.get("context", "") + "\n\n" + r.get("input", r.get("question", "")) for r in records]


def data(models_folder, data_folder):
    out = {}
    for name in ["smollm2", "qwen2.5-coder-0.5b"]:
        tokenizer = real_state(f"{models_folder}/{name}.gguf")
        tokenizer.encode_special_tokens = True
        out[name] = {}
        for pattern in ["text/*.txt", "longbench/*.jsonl", "ruler/*.jsonl"]:
            for path in sorted(pathlib.Path(data_folder).glob(pattern)):
                digest, count = hashlib.sha256(), 0
                for text in texts_of(path):
                    ids = tokenizer.encode(text, add_special_tokens=False).ids
                    digest.update(struct.pack(f"<{len(ids)}i", *ids))
                    count += len(ids)
                out[name][f"{path.parent.name}/{path.name}"] = {"count": count, "sha256": digest.hexdigest()}
    (OUT / "data.json").write_text(json.dumps(out, indent=0) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("text", nargs="?")
    parser.add_argument("--models")
    parser.add_argument("--data")
    arguments = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    if arguments.models:
        data(arguments.models, arguments.data)
    else:
        english = arguments.text and pathlib.Path(arguments.text).read_text(encoding="utf-8")[:400_000]
        write(OUT / "corpus.json", CORPUS)
        for family_name in FAMILIES:
            family(family_name, english)
        chats()
