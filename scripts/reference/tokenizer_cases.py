"""Write random and adversarial strings with the token ids that the `tokenizers` library gives them.

usage: python tokenizer_cases.py TOKENIZER_JSON OUT.json [RANDOM_TEXTS]      (packages: requirements.txt)

OUT.json: {"encode": [{"text": str, "ids": [int]}], "decode": [{"ids": [int], "text": str}]}. Special tokens written
out in a text are parsed as such, none is added. Decoding keeps special tokens and replaces what is not UTF-8.
"""
import json
import sys

import numpy as np
from tokenizers import Tokenizer

FIXED = [
    "", " ", "  ", "\n", "\r\n", "\t", " \n ", "\n\n\n", "   leading", "trailing   ", "a  b   c    d", "a\n\n b\n  c", "\r\r\n\n\r",
    " \t \t x", "x \t\n\t y", "\u00a0", "a\u00a0b", "\u3000\u3000x", "\u2003\u2009 x", "\u200b", "a\u200bb", "\u200d", "\ufeff", "\ufeffBOM",
    "\u2028a\u2029b", "\x00", "a\x00b", "\x01\x02\x1b[31m", "\x7f", "\x85", "\x0b\x0c", "\ufffd", "\ufffe", "\U0010ffff", "\U000e0001",
    "I'm you're he'll we've I'd it's don't", "I'M YOU'RE HE'LL WE'VE I'D IT'S", "'s", "''s", "x's's", "'S 'T 'RE", "\u2019s don\u2019t",
    "'\u017f", "it'\u017f", "0", "7 77 777 7777 77777 777777", "3.14159", "1,000,000", "0x1F", "1e-9", "12:34:56", "\u0661\u0662\u0663", "\u2160\u2161",
    "\u00bd\u00b2\u00b3", "\u4e00\u4e8c\u4e09", "x1y2z3", "v1.2.3-rc4", "__init__", "snake_case camelCase PascalCase", "foo(bar[baz]{qux})",
    "a+b=c;", "!!!", "?!?!", "...", "\u2026", "---", "\u2014", "#include <stdio.h>", "https://example.org/a?b=c&d=%20#e", "user@example.org",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "a<|im_end|>b", " <|im_end|> ", "<|im_end|><|im_end|>",
    "<|im_end|", "|im_end|>", "<|im_<|im_end|>end|>", "<|IM_END|>", "< |im_end|>", "<|im_end |>", "<think", "<<think>>", "<think></think><think>",
    "<|endoftext|>\n<|endoftext|> x", "e\u0301", "\u00e9", "n\u0303", "\u0301", "a\u0301\u0302\u0303\u0304", "Z\u0351\u036b\u0343\u036aA\u0314L",
    "\uac00\ub098\ub2e4", "\u1100\u1161", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8", "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\uff21\uff22\uff23\uff11\uff12\uff13",
    "\u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439", "\u0393\u03b5\u03b9\u03ac", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643", "\u202e\u202dabc\u202c", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd", "\u2764\ufe0f", "1\ufe0f\u20e3",
    "\U0001f600\U0001f600\U0001f600", "a\U0001f600b", " \U0001f600 ", "\U00020000\U0002a6d6", "\U0001d400\U0001d7ce", "\ue000\uf8ff", "\U000f0000",
    "\u01c5\u02b0\u0640", "\u0130\u0131", "\u1e9e\u00df", "\ufb01\ufb02", "\u212b\u2126", "a" * 300, "ab" * 150, " " * 300, "\n" * 100, "0" * 100,
    "\u00e9" * 60, "\U0001f600" * 30, "!" * 100, "aA" * 100, " a" * 100, "a " * 100, "\t" * 50 + "x", "x" + " " * 17 + "y", "\u0120\u010a", "\u0120the",
    "\u00c3\u00a9", "\\u0041\\n", "%s%d%n", "${x} {{y}} {% z %}", "\"quoted\" 'single' `tick`", "C:\\x\\y", "../../etc/passwd",
]
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " ", " \t\n\r", "\n ", ".,;:!?-_'\"()[]{}<>|/\\@#$%^&*+=~`",
    "\u00e9\u00e8\u00fc\u00df\u00f1\u00e7\u00f8\u0159\u0151", "\u0430\u0431\u0432\u0433\u0434\u0435\u0436\u0437", "\u03b1\u03b2\u03b3\u03b4", "\u05d0\u05d1\u05d2", "\u0627\u0628\u062a\u062b",
    "\u0905\u0906\u093e\u093f\u094d", "\u4e00\u4e8c\u4e09\u56db\u4f60\u597d", "\u3042\u30a2\u304b\u30ab\u30fc", "\uac00\ub098\ub2e4", "\u0301\u0302\u0327\u20dd",
    "\U0001f600\U0001f680\U0001f44d\U0001f3fd\u200d\ufe0f\U0001f1e9\U0001f1ea", "\u00a0\u2003\u200b\u3000\u2028\u0085", "\u00b2\u00bd\u0665\u2163\u2460\uff15", "\x00\x01\x1f\x7f",
    "'sS'tT'rR'eE'vV'mM'lL'dD\u2019\u017f",
]
WORDS = ("the king looked at dragon and said what a fool I was Once upon time there lived an old woman who didn't know how to read "
         "Answer: 42 is not <= 7 return self.value if x else None def main(argc, argv): // TODO").split(" ")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]


def random_text(rng):
    kind, out = rng.integers(0, 5), []
    if kind == 0:  # words, oddly spaced
        for _ in range(rng.integers(1, 14)):
            out.append(str(rng.choice(WORDS)) + str(rng.choice([" ", " ", " ", "  ", "\n", "", ", ", ".\n\n"])))
    elif kind == 1:  # runs out of a few alphabets
        picked = rng.choice(len(ALPHABETS), rng.integers(1, 5))
        for _ in range(rng.integers(1, 12)):
            alphabet = ALPHABETS[rng.choice(picked)]
            out += [alphabet[rng.integers(len(alphabet))] for _ in range(rng.integers(1, 7))]
    elif kind == 2:  # any characters at all
        for _ in range(rng.integers(1, 20)):
            code = int(rng.integers(0, [0x80, 0x800, 0x10000, 0x110000][rng.integers(4)]))
            out.append(chr(code) if not 0xD800 <= code < 0xE000 else "\ufffd")
    elif kind == 3:  # special tokens and pieces of them among text
        for _ in range(rng.integers(1, 8)):
            token = SPECIAL[rng.integers(len(SPECIAL))]
            cut = rng.integers(0, len(token) + 1)
            out.append(str(rng.choice([token, token, token[:cut], token[cut:], " ", "\n", "x", str(rng.choice(WORDS))])))
    else:  # a mixture
        for _ in range(rng.integers(2, 5)):
            out.append(random_text(rng))
    return "".join(out)


def main(tokenizer_json, out, count=2000):
    tokenizer, rng = Tokenizer.from_file(tokenizer_json), np.random.default_rng(17)
    texts = list(dict.fromkeys(FIXED + [random_text(rng) for _ in range(int(count))]))
    encode = [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in texts]
    decode = []
    for _ in range(int(count) // 7 + 15):
        ids = [int(i) for i in rng.integers(0, tokenizer.get_vocab_size(), rng.integers(1, 12))]
        if rng.random() < 0.5:  # the byte tokens, so that UTF-8 breaks
            ids = [i % 300 for i in ids]
        decode.append({"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=False)})
    with open(out, "w") as file:
        file.write('{"encode":[\n')
        file.write(",\n".join(json.dumps(case, separators=(",", ":")) for case in encode))
        file.write('\n],"decode":[\n')
        file.write(",\n".join(json.dumps(case, separators=(",", ":")) for case in decode))
        file.write("\n]}\n")
    same = sum(tokenizer.decode(c["ids"], skip_special_tokens=False) == c["text"] for c in encode)
    print(len(encode), "texts,", same, "decode to themselves,", len(decode), "decodings")


if __name__ == "__main__":
    main(*sys.argv[1:])
