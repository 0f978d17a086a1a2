"""One question to a model, through ctypes: chat.py LIBRARY MODEL [QUESTION]

Applies the model's chat template, streams the answer with the probability of each token, prints figures.
"""

import ctypes
import json
import sys
from ctypes import POINTER, byref, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32, c_uint64
from ctypes import c_void_p


class Error(ctypes.Structure):
    _fields_ = [("status", c_int32), ("message", c_char * 512)]


class Request(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("prompt", POINTER(c_uint32)),
        ("prompt_count", c_size_t),
        ("max_tokens", c_int64),
        ("seed", c_int64),
        ("stop", POINTER(c_char_p)),
        ("stop_count", c_size_t),
        *[(name, c_char_p) for name in ("json_schema", "grammar", "lark", "regex", "session")],
        ("temperature", c_float),
        ("top_k", c_int32),
        *[(name, c_float) for name in ("top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")],
        *[(name, c_int32) for name in ("repeat_last_n", "logprobs", "echo", "ignore_eos", "cache_prompt", "background")],
        *[(name, c_float) for name in ("typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold")],
        *[(name, c_float) for name in ("dry_multiplier", "dry_base")],
        ("dry_allowed_length", c_uint32),
        ("dry_penalty_last_n", c_int32),
        *[(name, c_float) for name in ("dynatemp_range", "dynatemp_exponent")],
        ("mirostat", c_int32),
        *[(name, c_float) for name in ("mirostat_tau", "mirostat_eta")],
        ("speculation", c_int32),
        ("bias", c_void_p),
        ("bias_count", c_size_t),
        ("draft_max", c_int64),
    ]


class Alternative(ctypes.Structure):
    _fields_ = [("id", c_uint32), ("logprob", c_float)]


class Token(ctypes.Structure):
    _fields_ = [
        ("id", c_uint32),
        ("has_logprob", c_int32),
        ("logprob", c_float),
        ("top", POINTER(Alternative)),
        ("top_count", c_size_t),
        ("text", c_void_p),
        ("text_bytes", c_size_t),
    ]


TextCallback = ctypes.CFUNCTYPE(c_int32, c_void_p, c_size_t, c_void_p)
TokenCallback = ctypes.CFUNCTYPE(c_int32, POINTER(Token), c_void_p)
PromptCallback = ctypes.CFUNCTYPE(c_int32, c_size_t, c_size_t, c_size_t, c_void_p)


class Listener(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("user_data", c_void_p),
        ("on_text", TextCallback),
        ("on_token", TokenCallback),
        ("on_prompt_token", TokenCallback),
        ("on_prompt", PromptCallback),
    ]


class Stats(ctypes.Structure):
    _fields_ = [
        *[(name, c_uint64) for name in ("accepted", "refused", "completed", "cancelled", "failed", "steps")],
        *[(name, c_uint64) for name in ("prompt_tokens", "cached_tokens", "generated_tokens", "drafted_tokens")],
        ("accepted_tokens", c_uint64),
        ("prefill_seconds", c_double),
        ("decode_seconds", c_double),
        *[(name, c_size_t) for name in ("waiting", "running", "max_running", "context", "reserved_bytes")],
        *[(name, c_size_t) for name in ("memory_budget", "cache_entries", "cache_bytes", "cache_budget")],
    ]


class Millpond:
    """The library; every failed call becomes an exception."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)

    def call(self, name, *arguments):
        error = Error()
        if getattr(self.library, name)(*arguments, byref(error)) != 0:
            raise RuntimeError(f"{name}: {error.message.decode()}")

    def prompt(self, model, messages):
        """Token ids of messages: asks for their number first."""
        data, count = json.dumps(messages).encode(), c_size_t()
        error = Error()
        self.library.millpond_chat_tokenize(model, data, None, None, c_size_t(0), byref(count), byref(error))
        tokens = (c_uint32 * max(count.value, 1))()
        self.call("millpond_chat_tokenize", model, data, None, tokens, c_size_t(len(tokens)), byref(count))
        return tokens, count


def answer(millpond, model, engine, question):
    request, listener = Request(), Listener()
    millpond.library.millpond_request_init(byref(request))
    millpond.library.millpond_listener_init(byref(listener))
    request.prompt, request.prompt_count = millpond.prompt(model, [{"role": "user", "content": question}])
    request.max_tokens, request.temperature, request.logprobs = 24, 0, 2
    probabilities = []

    @TextCallback
    def on_text(address, size, _user_data):
        print(ctypes.string_at(address, size).decode(), end="", flush=True)
        return 0

    @TokenCallback
    def on_token(token, _user_data):
        assert token[0].top_count == 2
        probabilities.append(token[0].logprob)
        return 0

    listener.on_text, listener.on_token = on_text, on_token
    generation = c_void_p()
    millpond.call("millpond_generation_start", engine, byref(request), byref(generation))
    try:
        millpond.call("millpond_generation_listen", generation, byref(listener), None)
    finally:
        millpond.call("millpond_generation_free", generation)
    print()
    return probabilities


def main():
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} LIBRARY MODEL [QUESTION]")
    millpond = Millpond(sys.argv[1])
    model, engine, stats = c_void_p(), c_void_p(), Stats()
    millpond.call("millpond_model_load", sys.argv[2].encode(), None, byref(model))
    millpond.call("millpond_engine_start", model, None, byref(engine))
    probabilities = answer(millpond, model, engine, sys.argv[3] if len(sys.argv) > 3 else "Who lives in the mill?")
    millpond.call("millpond_engine_stats", engine, byref(stats))
    mean = sum(probabilities) / max(len(probabilities), 1)
    print(f"{stats.generated_tokens} tokens written, mean log probability {mean:.2f}", file=sys.stderr)
    millpond.call("millpond_engine_free", engine)
    millpond.call("millpond_model_free", model)


main()
