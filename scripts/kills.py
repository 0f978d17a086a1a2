#!/usr/bin/env python3
"""Kills servers while they save a state, and looks whether one is ever lost. Needs Python 3.9 and nothing else.

    scripts/kills.py --server target/release/millpond [--rounds 1000]

In each round a server has to find the state that the one before it, which was killed, had saved last or was saving.
"""

import argparse
import http.client
import os
import random
import subprocess
import sys
import tempfile
import threading
import time

from load import Server, report

# Tokens of the longest state.
LONGEST = 2000


def start(program, folder):
    """A server that serves, and how to talk to it."""
    command = [program, "serve", "-t", "1", "--port", "0", "--no-warmup", "--slot-save-path", folder]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    server = None
    for line in process.stderr:
        if "listening at" in line:
            server = Server(line.split()[-1], None)
        elif "serving" in line:
            return process, server
    raise SystemExit("the server does not start")


def save_for_ever(server, saved, wrong):
    try:
        while True:
            status, _, value = server.post("/slots/0?action=save", {"filename": "kept"})
            if status != 200:
                wrong.append((status, value))
                return
            saved.set()
    except (OSError, http.client.HTTPException, ValueError):
        # It has been killed.
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="the program millpond")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--longest", type=float, default=0.02, help="seconds of saving after which a server is killed, at most")
    args = parser.parse_args()
    begun, least, cut = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.rounds):
            process, server = start(args.server, folder)
            saved, wrong = threading.Event(), []
            try:
                if least:
                    status, _, found = server.post("/slots/7?action=restore", {"filename": "kept"})
                    if status != 200 or found["n_restored"] < least:
                        raise SystemExit(f"round {turn}: {least} tokens had been saved, found: {status} {found}")
                # Each state is longer than the one before, until the longest; then it begins anew.
                length = 16 + turn * 3 % LONGEST
                least = min(least, length)
                status, _, value = server.post("/completion", {"prompt": [5 + turn % 7] * length, "n_predict": 1, "id_slot": 0})
                if status != 200:
                    raise SystemExit(f"round {turn}: {status} {value}")
                saver = threading.Thread(target=save_for_ever, args=(server, saved, wrong))
                saver.start()
                # Every other server is killed in its first saves, which take the place of another state.
                if turn % 2 == 0:
                    saved.wait(60)
                time.sleep(random.uniform(0.0, args.longest))
            finally:
                process.kill()
                process.wait()
            saver.join()
            if wrong:
                raise SystemExit(f"round {turn}: saving answers {wrong}")
            if saved.is_set():
                least = length
            cut += any(name.endswith(".saving") for name in os.listdir(folder))
        left = sorted(os.listdir(folder))
    report(scenario="kills", rounds=args.rounds, killed_while_writing=cut, lost=0, files=left, seconds=time.monotonic() - begun)


if __name__ == "__main__":
    sys.exit(main())
