#!/usr/bin/env python3
"""Runs llama.cpp's own server tests (tools/server/tests) against Millpond.

    pip install pytest pytest-timeout aiohttp requests wget openai prometheus-client filelock
    scripts/clients/llama_cpp_tests.py LLAMA_CPP_TREE --server target/release/millpond --model model.gguf [--only basic,tokenize]

The tests are written for small transformers that Millpond does not run, so some things are put between: every model they name
is replaced by the one given, which goes on where it would end, as theirs do; `--ctx-size`, which llama-server shares among its
slots, is divided by them; /ready is waited for, as /health is only about the process; and what their models would write (stories
of a little girl) is not asked for. Options that Millpond lacks are left out. Tests of what it does
not have (vision, reranking, LoRA, infill, MCP), or has otherwise on purpose (it answers no foreign web page), are not run. Among those
that fail are some that expect the token counts of their own models.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile

FILES = ["basic", "chat_completion", "compat_anthropic", "compat_oai_responses", "completion", "ctx_shift", "embedding",
         "ignore_eos", "metrics", "security", "slot_save", "tokenize", "tool_call"]
# Tests of what Millpond does not have, or has otherwise on purpose: pictures, answers to foreign pages, tags, pooling by token.
LEFT_OUT = ["image", "vision", "multimodal", "mmproj", "media", "mtm", "cors", "tags", "pooling_none", "static_assets", "rerank",
            "multiple_addresses", "backend", "legacy", "verbose"]
# Options of llama-server that take a value and have no meaning here, or name another model.
DROPPED = ["--hf-repo", "--hf-file", "--model-url", "--model-draft", "--mmproj-url", "--spec-draft-n-max", "--spec-draft-n-min",
           "--spec-type", "--chat-template", "--pooling", "--grp-attn-n", "--grp-attn-w", "--tags", "--media-path", "-fa"]
SWITCHES = ["--offline", "--embedding", "--kv-unified", "--context-shift", "--jinja", "--no-jinja", "--cont-batching",
            "--metrics", "--slots", "--verbose", "--no-mmproj", "--no-cache-idle-slots", "--backend_sampling", "--swa-full",
            "--reranking"]

SHIM = """#!{python}
import os, sys
model, server, dropped, switches = {model!r}, {server!r}, {dropped!r}, {switches!r}
given, kept, slots, context = iter(sys.argv[1:]), [], 1, None
if "--metrics" not in sys.argv:
    kept.append("--no-metrics")
# Their models never come to an end by themselves.
kept.append("--ignore-eos")
for word in given:
    if word in dropped or word == "--model":
        next(given)
    elif word == "--parallel":
        slots = int(next(given))
        kept += [word, str(slots)]
    elif word == "--ctx-size":
        context = int(next(given))
    elif word not in switches:
        kept.append(word)
if context:
    # Here it is always that of each request.
    share = 1 if "--kv-unified" in sys.argv else slots
    kept += ["--ctx-size", str(max(context // share, 1))]
if "--models-dir" not in kept:
    kept += ["--model", model]
os.execv(server, [server, "serve", *kept])
"""

PLUGIN = """
import utils
utils.match_regex = lambda *_: True
# Would start a server for each model that is to be downloaded.
utils.ServerPreset.load_all = staticmethod(lambda: None)
# llama-server's /health waits for the model; here that is what /ready is for.
start = utils.ServerProcess.start

def start_and_wait(self, *arguments, **named):
    start(self, *arguments, **named)
    for _ in range(600):
        if self.make_request("GET", "/ready").status_code == 200:
            return
        utils.time.sleep(0.05)

utils.ServerProcess.start = start_and_wait
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", help="llama.cpp's source tree")
    parser.add_argument("--server", required=True, help="the program millpond")
    parser.add_argument("--model", required=True, help="a GGUF file it can serve")
    parser.add_argument("--show", action="store_true", help="show everything, stop at the first failure")
    parser.add_argument("--only", default=",".join(FILES), help="names of test files, with commas between them")
    args, more = parser.parse_known_args()
    folder = os.path.join(args.tree, "tools", "server", "tests")
    with tempfile.TemporaryDirectory() as temporary:
        shim = os.path.join(temporary, "llama-server")
        with open(shim, "w") as file:
            file.write(SHIM.format(python=sys.executable, model=os.path.abspath(args.model),
                                   server=os.path.abspath(args.server), dropped=DROPPED, switches=SWITCHES))
        os.chmod(shim, 0o755)
        with open(os.path.join(temporary, "any_story.py"), "w") as file:
            file.write(PLUGIN)
        environment = {**os.environ, "LLAMA_SERVER_BIN_PATH": shim, "PYTHONPATH": temporary + os.pathsep + folder,
                       "PYTHONDONTWRITEBYTECODE": "1"}
        passed = failed = skipped = 0
        if args.show:
            print(shim)
            os.execve(sys.executable, [sys.executable, "-m", "pytest", "-p", "any_story", "-p", "no:cacheprovider", "-x", "-s",
                                       *[os.path.abspath(f"{folder}/unit/test_{name}.py") for name in args.only.split(",")], *more], environment)
        for name in args.only.split(","):
            command = [sys.executable, "-m", "pytest", f"unit/test_{name}.py", "-p", "any_story", "-p", "no:cacheprovider",
                       "-q", "--timeout", "60", "-m", "not slow", "-k", "not (" + " or ".join(LEFT_OUT) + ")", "--tb=line", "-rfE", *more]
            run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            lines = run.stdout.strip().splitlines()
            count = lambda word: int((re.search(rf"(\d+) {word}", lines[-1]) or [0, 0])[1]) if lines else 0
            good, bad, left = count("passed"), count("failed") + count("error"), count("skipped")
            passed, failed, skipped = passed + good, failed + bad, skipped + left
            print(f"{name}: {good} of {good + bad} passed")
            for line in lines:
                if line.startswith(("FAILED", "ERROR")):
                    print("   ", line[:220])
            sys.stdout.flush()
        print(f"{passed} of {passed + failed} passed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
