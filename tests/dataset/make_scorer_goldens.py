"""Writes scorer_goldens.json: scores of hostile texts by the definitions of the benchmarks.

usage: python3 make_scorer_goldens.py > scorer_goldens.json
needs: pip install rouge==1.0.1 fuzzywuzzy==0.18.0 Levenshtein==0.27.5 numpy

ROUGE-L comes from the package `rouge`, code similarity from `fuzzywuzzy` on
Levenshtein and on difflib, rounding from Python and numpy; the rest is written down here from the published definitions.
"""

import collections
import difflib
import json
import random
import re
import string
import sys

import numpy
from fuzzywuzzy import fuzz
from fuzzywuzzy.StringMatcher import StringMatcher
from rouge import Rouge


def words_of(text):
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(?:a|an|the)\b", " ", text).split()


def qa_f1(pred, ref, classes):
    p, r = words_of(pred), words_of(ref)
    same = sum((collections.Counter(p) & collections.Counter(r)).values())
    if not same:
        return 0.0
    precision, recall = same / len(p), same / len(r)
    return (2 * precision * recall) / (precision + recall)


def rouge_l(pred, ref, classes):
    try:
        return Rouge().get_scores([pred], [ref], avg=True)["rouge-l"]["f"]
    except (ValueError, RecursionError):
        return 0.0


def classification(pred, ref, classes):
    named = [c for c in classes if c in pred]
    for c in named:
        if c in ref and c != ref:
            named.remove(c)  # while iterating, as the benchmark does
    return 1 / len(named) if ref in named else 0.0


def share(numbers, wanted):
    return sum(n == wanted for n in numbers) / len(numbers) if numbers else 0.0


def count(pred, ref, classes):
    return share(re.findall(r"\d+", pred), ref)


def retrieval(pred, ref, classes):
    return share(re.findall(r"\d+", pred), re.search(r"Paragraph (\d+)", ref).group(1))


def code_similarity(pred, ref, classes, matcher=StringMatcher):
    fuzz.SequenceMatcher = matcher
    lines = pred.lstrip("\n").split("\n")
    line = next((x for x in lines if not ("`" in x or "#" in x or "//" in x)), "")
    return fuzz.ratio(line, ref) / 100


def code_similarity_difflib(pred, ref, classes):
    return code_similarity(pred, ref, classes, difflib.SequenceMatcher)


def contained(pred, refs):
    pred = re.sub(r"[\x00-\x1f]", "\n", pred.strip()).strip().lower()
    return [r.lower() in pred for r in refs]


METRICS = {
    "qa_f1": qa_f1,
    "rouge_l": rouge_l,
    "classification": classification,
    "retrieval": retrieval,
    "count": count,
    "code_similarity": code_similarity,
    "code_similarity_difflib": code_similarity_difflib,
}


# As deep in the stack as in eval.py, which decides where ROUGE's recursion gives up.
def scorer(case):
    score = 0.0
    metric = METRICS[case["metric"]]
    for ref in case["refs"]:
        score = max(score, metric(case["pred"], ref, case["classes"]))
    return score


RANDOM = random.Random(20260207)
TRICKY = ["A", "an", "The", "the", "ΟΔΟΣ", "ΣΑΣ", "Σ", "aΣ.", "Σ'α", "İstanbul", "ǅ", "ẞ", "Ａｎ",
          "a_b", "_", "the-end", "l'an", "U.S.", "U.–S.–A.", "café", "cafe\u0301", "e\u0301\u0301",
          "12", "٣٤", "１２", "²", "½", "Ⅻ", "a\u00a0b", "x\u200by", "\u3000", "\x1c", "\x85", "\u2028",
          "naïve", "日本", "日本語。", "🙂", "👩‍👩‍👧", "\x00", "“the”", "the—a", "a\u0308", "ΑΣ\u0301Β", "ΑΣ\u0301",
          "\ufeffthe", "...", ".", " ", "", "\n", "\t", "é", "ß", "K", "Å", "𐐀", "𝟘", "\U0001e900"]


def text(words, separators=(" ", " ", " ", "  ", ". ", ".", "\n", ", ")):
    return "".join(RANDOM.choice(words) + RANDOM.choice(separators)
                   for _ in range(RANDOM.randrange(0, 14)))


def code(length, letters):
    return "".join(RANDOM.choice(letters) for _ in range(length))


def changed(line, letters):
    out = list(line)
    for _ in range(RANDOM.randrange(0, 1 + len(line) // 6)):
        at = RANDOM.randrange(len(out) + 1)
        out[at:at + RANDOM.randrange(3)] = code(RANDOM.randrange(3), letters)
    return "".join(out)


def cases():
    def add(metric, pred, *refs, classes=()):
        return {"metric": metric, "pred": pred, "refs": list(refs), "classes": list(classes)}

    for metric in ("qa_f1", "rouge_l"):
        for pred, *refs in [
            ("", ""), ("", "x"), ("x", ""), (".", "."), (" ", " "), (" ", "x y"), (". .", " . "),
            ("the", "a"), ("a b", "b"), ("x",), ("a a b b b", "a b b c", "b b"), ("x.y.z", "x y z"),
            ("The cat. The dog", "the cat. The dog."), ("a\u00a0b", "a b"), ("a an the", "the a an"),
            ("the_end", "end"), ("ΟΔΟΣ ΣΑΣ", "οδος σας"), ("İ", "i̇"), ("ANNA.S", "annas"),
            ("x y. z x", "z x. y", "x y z"),
        ]:
            yield add(metric, pred, *refs)
        for word in TRICKY:
            yield add(metric, f"{word} end", word.lower() + " end", f"x{word}y")
        for _ in range(90):
            yield add(metric, text(TRICKY), *(text(TRICKY) for _ in range(RANDOM.randrange(1, 4))))
    for _ in range(60):
        letters = "abcde"[:RANDOM.randrange(2, 6)]
        yield add("rouge_l", text(letters), text(letters), text(letters))
    # Python's recursion limit: 990 steps pass, 991 do not.
    for n in (989, 990, 991, 1200):
        same = " ".join(f"{i % 90}" for i in range(n))
        yield add("rouge_l", same, same)
    for n in (489, 490, 491, 492, 493, 500):
        first, last = ("p " * n + "k").split(), ("k " + "q " * 499).split()
        yield add("rouge_l", " ".join(first), " ".join(last))
        yield add("rouge_l", " ".join(last), " ".join(first))
    yield add("rouge_l", "x " * 1200, "y " * 3)
    yield add("rouge_l", "y " * 3 + "x", "x " * 1200 + ". x")
    yield add("rouge_l", "x " * 400 + ". y", "y " * 400)

    classes = ["Food", "Date", "Other location", "location", "Other", "Speed", "d", "Oth", "é", ""]
    for _ in range(120):
        some = RANDOM.choices(classes, k=RANDOM.randrange(0, 8))
        yield add("classification", text(classes + ["food", "x"]), RANDOM.choice(classes),
                  RANDOM.choice(classes), classes=some)
    numbers = ["7", "07", "12", "1", "٧", "７", "²", "Paragraph 7", "7.0", "-7", "x7y", "½", "no", "𝟕"]
    for _ in range(60):
        yield add("count", text(numbers), RANDOM.choice(numbers), RANDOM.choice(numbers))
        yield add("retrieval", text(numbers), f"Paragraph {RANDOM.choice(['7', '12', '٧x', '07'])}",
                  f"paragraph 1 Paragraph  2 Paragraph x Paragraph {RANDOM.choice('17')}. Paragraph 3")
    for pred, ref in [("", ""), ("\n\n", ""), ("x", ""), ("", "x"), ("# a\nb", "b"), ("a//\n`\n\nb", "b"),
                      ("\n\n  x = 1", "  x = 1"), ("# only", "x"), ("a\r\nb", "a"), ("#", ""),
                      ("🙂é", "é🙂"), ("abxcd", "abcd"), ("acab", "ab"), ("ab", "acab"), ("x\u2028# y\nz", "z"),
                      ("a" * 199, "a" * 199 + "b"), ("a" * 200, "a" * 200 + "b"), ("b" + "a" * 300, "a" * 300)]:
        yield add("code_similarity", pred, ref)
        yield add("code_similarity_difflib", pred, ref)
    for _ in range(110):
        letters = RANDOM.choice(["ab", "abc =(", string.ascii_letters + " ._()", "aé🙂日"])
        line = code(RANDOM.choice([3, 8, 20, 60, 198, 199, 200, 201, 260, 420]), letters)
        pair = [line, changed(line, letters)]
        RANDOM.shuffle(pair)
        yield add("code_similarity", *pair)
        yield add("code_similarity_difflib", *pair)
    for _ in range(60):  # ties of the rounding
        total = RANDOM.choice([8, 40, 80])
        line = code(RANDOM.randrange(1, total), "abcd")
        yield add("code_similarity", line, code(total - len(line), "abcd"))


def point_sums():
    """What the tables say of all characters, as sums."""
    points = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]
    total = 2**64
    return {
        "word": sum(c for c in points if re.match(r"\w", chr(c))),
        "digit": sum(c for c in points if re.match(r"\d", chr(c))),
        "space": sum(c for c in points if chr(c).isspace()),
        "lower": sum(c * sum(map(ord, chr(c).lower())) for c in points) % total,
        "before_sigma": sum(c for c in points if (chr(c) + "Σ").lower()[-1] == "ς"),
        "between_sigma": sum(c for c in points if ("A" + chr(c) + "Σ").lower()[-1] == "ς"),
        "behind_sigma": sum(c for c in points if ("AΣ" + chr(c)).lower()[1] == "ς"),
        "behind_sigma_a": sum(c for c in points if ("AΣ" + chr(c) + "A").lower()[1] == "ς"),
    }


def ruler_cases():
    for pred, refs in [("The numbers are 12 and 34.", ["12", "34", "56"]), ("ABC", ["abc", "Abc"]),
                       ("", ["x"]), ("ΟΔΟΣ", ["οδος"]), ("x\ty", ["x\ty", "x y", "x\ny"]),
                       (" x ", [" x", "x "]), ("İ", ["i"]), ("a\x00b\x01", ["a\nb", "b\n"]), ("x", [""])]:
        hits = contained(pred, refs)
        yield {"pred": pred, "refs": refs, "all": sum(hits) / len(hits), "part": float(any(hits))}


def rounding_cases():
    for n in [1, 2, 3, 7, 8, 9, 16, 17, 127, 128, 129, 136, 150, 200, 256, 257, 300, 500] * 3:
        scores = [RANDOM.randrange(0, 101) / 100 for _ in range(n)]
        total = 0.0
        for score in scores:
            total += score
        yield {"scores": [round(100 * s) for s in scores], "task": round(100 * total / n, 2),
               "bucket": float(round(100 * numpy.mean(scores), 2))}


if __name__ == "__main__":
    found = list(cases())
    for case in found:
        case["score"] = float(scorer(case))
    parts = {"cases": found, "ruler": list(ruler_cases()), "rounding": list(rounding_cases())}
    print("{")
    for name, items in parts.items():
        print(f'"{name}": [')
        print(",\n".join(json.dumps(item) for item in items))
        print("],")
    print(f'"points": {json.dumps(point_sums())}')
    print("}")
