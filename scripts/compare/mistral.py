"""Measures mistral.rs through the package mistralrs.

usage: mistral.py MODEL THREADS KIND TOKENS DEPTH STREAMS      prints one JSON object; see ik_llama.py

Rates are those the program reports for a request. Its prompts are texts, so their lengths are met approximately.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WORD = " the"


def request(runner, mistralrs, prompt_tokens, new_tokens, salt):
    prompt = f"{salt}" + WORD * max(prompt_tokens - 1, 0)
    return runner.send_completion_request(
        mistralrs.CompletionRequest(
            prompt=prompt, model="default", max_tokens=new_tokens, temperature=0.0, ignore_eos=True
        )
    ).usage


def main():
    path = Path(sys.argv[1]).resolve()
    kind = sys.argv[3]
    threads, tokens, depth, streams = int(sys.argv[2]), *map(int, sys.argv[4:7])
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    import mistralrs

    if kind == "prompts":
        print(json.dumps({"unsupported": "the program reports no rate for prompts read together"}))
        return
    try:
        which = mistralrs.Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
        runner = mistralrs.Runner(which=which, max_seqs=max(streams, 1), prefix_cache_n=0)
    except Exception as error:  # whatever it says is what is reported
        text = str(error).splitlines()
        print(json.dumps({"unsupported": text[0][:160] if text else repr(error)}))
        return
    if kind == "start":
        request(runner, mistralrs, 1, 1, 1)
        print(json.dumps({"seconds": 0.0}))
        return
    request(runner, mistralrs, 16, 2, 0)
    if kind == "prefill":
        usage = request(runner, mistralrs, depth + tokens, 1, 1)
        rate = usage.prompt_tokens / usage.total_prompt_time_sec
    else:
        with ThreadPoolExecutor(streams) as pool:
            jobs = [pool.submit(request, runner, mistralrs, max(depth, 1), tokens, s + 1) for s in range(streams)]
            usages = [job.result() for job in jobs]
        seconds = max(usage.total_completion_time_sec for usage in usages)
        rate = sum(usage.completion_tokens for usage in usages) / seconds
    print(json.dumps({"tokens_per_second": rate}))


main()
