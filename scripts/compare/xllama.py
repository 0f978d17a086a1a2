"""Measures llama.cpp in the prebuilt package xllamacpp, through its server interface.

usage: xllama.py MODEL THREADS KIND TOKENS DEPTH STREAMS      prints one JSON object; see ik_llama.py

Rates are the server's own timings.
"""

import json
import sys

import xllamacpp


def main():
    path, kind = sys.argv[1], sys.argv[3]
    threads, tokens, depth, streams = int(sys.argv[2]), *map(int, sys.argv[4:7])
    if streams > 1:
        print(json.dumps({"unsupported": "driven with one stream only"}))
        return
    if kind == "prefill" and depth:
        print(json.dumps({"unsupported": "a prompt is measured from its beginning only"}))
        return
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = depth + tokens + 256
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def complete(prompt_tokens, new_tokens, salt):
        request = {
            "prompt": [(7919 * (i + salt) + 13) % 30000 for i in range(prompt_tokens)],
            "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
        }
        answer = server.handle_completions(request)
        answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
        if "timings" not in answer:
            raise SystemExit(f"no timings: {str(answer)[:120]}")
        return answer["timings"]

    if kind == "start":
        complete(1, 1, 0)
        print(json.dumps({"seconds": 0.0}))
        return
    complete(16, 4, 5)
    if kind == "prefill":
        rate = complete(tokens, 1, 1)["prompt_per_second"]
    else:
        rate = complete(max(depth, 1), tokens, 1)["predicted_per_second"]
    print(json.dumps({"tokens_per_second": rate}))


main()
