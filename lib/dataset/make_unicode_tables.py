"""Writes unicode_tables.inc: how Python classifies and lowercases characters.

usage: python3 make_unicode_tables.py > unicode_tables.inc

Everything is asked of the running interpreter itself, so that scores follow the Unicode version
that it names.
"""

import re
import sys
import unicodedata

POINTS = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]


def flags(c):
    char = chr(c)
    word = re.fullmatch(r"\w", char) is not None
    digit = re.fullmatch(r"\d", char) is not None
    # The rule of the final sigma, observed: it looks through ignorable characters for cased ones.
    cased = (char + "Σ").lower().endswith("ς")
    ignorable = not cased and ("A" + char + "Σ").lower().endswith("ς")
    return [name for name, on in
            [("kWord", word), ("kDigit", digit), ("kCased", cased), ("kIgnorable", ignorable)] if on]


def class_ranges():
    ranges = []
    for c in POINTS:
        names = "|".join(flags(c))
        if names and ranges and ranges[-1][1] == c - 1 and ranges[-1][2] == names:
            ranges[-1][1] = c
        elif names:
            ranges.append([c, c, names])
    return ranges


def lower_ranges():
    ranges = []
    for c in POINTS:
        lower = chr(c).lower()
        if len(lower) != 1:
            assert c == 0x130, "only the dotted I has a lowercase of two characters"
            continue
        delta = ord(lower) - c
        if delta == 0:
            continue
        if ranges and ranges[-1][3] == delta:
            first, last, step, _ = ranges[-1]
            if c - last <= 2 and (first == last or c - last == step):
                ranges[-1][1:3] = [c, c - last]
                continue
        ranges.append([c, c, 1, delta])
    return ranges


print(f"// Made by make_unicode_tables.py: Unicode {unicodedata.unidata_version}, "
      f"Python {sys.version_info.major}.{sys.version_info.minor}.")
print("constexpr CharClass kClasses[] = {")
for first, last, names in class_ranges():
    print(f"    {{{first:#x}, {last:#x}, {names}}},")
print("};")
print("constexpr LowerRange kLower[] = {")
for first, last, step, delta in lower_ranges():
    print(f"    {{{first:#x}, {last:#x}, {step}, {delta}}},")
print("};")
