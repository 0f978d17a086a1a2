"""Measures ik_llama.cpp through the package ik-llama-cpp-python, which has no program of its own for that.

usage: ik_llama.py MODEL THREADS KIND TOKENS DEPTH STREAMS      prints one JSON object

KIND: prefill (TOKENS of a prompt behind DEPTH others), decode (TOKENS one after the other, on STREAMS at once), prompts
(STREAMS prompts of TOKENS together), start (nothing: the process's own time counts).
"""

import ctypes
import json
import sys
import time

from ik_llama_cpp import _ctypes_api as api

UBATCH = 512


class Model:
    def __init__(self, path, threads, context, streams, flash_attention=True):
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.repack_tensors = True
        self.model = api.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise SystemExit("the model does not load")
        params = api.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = 2048
        params.n_ubatch = UBATCH
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn = flash_attention
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("no context for the model")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(2048, 0, 1)

    def decode(self, rows):
        """Rows of (token, position, stream, wants logits) in one call."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, stream, logits) in enumerate(rows):
            batch.token[i] = token % self.vocabulary
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = stream
            batch.logits[i] = logits
        code = api.llama_decode(self.context, batch)
        if code != 0:
            raise SystemExit(f"llama_decode returned {code}")

    def prompt(self, first, count, stream, salt):
        for start in range(first, first + count, UBATCH):
            end = min(start + UBATCH, first + count)
            rows = [(7919 * (p + salt) + 13, p, stream, p + 1 == first + count) for p in range(start, end)]
            self.decode(rows)

    def wait(self):
        """Work that is still going on would not be counted."""
        if hasattr(api._lib, "llama_synchronize"):
            api._lib.llama_synchronize.argtypes = [ctypes.c_void_p]
            api._lib.llama_synchronize(self.context)


def measure(model, kind, tokens, depth, streams):
    """Seconds for all tokens of all streams."""
    api.llama_kv_cache_clear(model.context)
    for stream in range(streams):
        if depth:
            model.prompt(0, depth, stream, stream)
        elif kind == "decode":
            model.decode([(stream + 1, 0, stream, 1)])
    first = depth if depth or kind != "decode" else 1
    model.wait()
    start = time.perf_counter()
    if kind == "prefill":
        model.prompt(depth, tokens, 0, 1)
    elif kind == "prompts":
        per_call = max(UBATCH // streams, 1)
        for begin in range(0, tokens, per_call):
            end = min(begin + per_call, tokens)
            model.decode(
                [(7919 * p + 31 * s + 13, p, s, p + 1 == tokens) for s in range(streams) for p in range(begin, end)]
            )
    else:
        for step in range(tokens):
            model.decode([(7919 * step + 31 * s + 5, first + step, s, 1) for s in range(streams)])
    model.wait()
    return time.perf_counter() - start


def main():
    path, threads, kind, tokens, depth, streams = sys.argv[1], *sys.argv[2:3], sys.argv[3], *sys.argv[4:7]
    threads, tokens, depth, streams = int(threads), int(tokens), int(depth), int(streams)
    if kind == "start":
        model = Model(path, threads, 4096, 1)
        model.decode([(97, 0, 0, 1)])
        model.wait()
        print(json.dumps({"seconds": 0.0}))
        return
    context = (depth + tokens + 64) * streams
    # Version 0.1.5 ends with an assertion when several short streams share its flash attention.
    flash_attention = streams == 1 or depth >= 128
    model = Model(path, threads, max(context, 2048), streams, flash_attention)
    if depth == 0:
        # Pages of the file, buffers: as the other programs warm up.
        measure(model, kind, min(tokens, 32), 0, streams)
    seconds = measure(model, kind, tokens, depth, streams)
    print(json.dumps({"tokens_per_second": tokens * streams / seconds}))


main()
