#!/usr/bin/env python3
"""Loads a running server and prints what it measured. Needs Python 3.9 and nothing else.

    scripts/load.py --url http://127.0.0.1:8137 clients --clients 8 --prompt 512 --predict 64
    scripts/load.py gap          a long prompt arrives while streams decode: the longest silence of a stream
    scripts/load.py cancel       clients leave at random points: how soon their work ends and their memory is free
    scripts/load.py reuse        conversations that go on, are edited, or change their last words: what is reused
    scripts/load.py agents       transcripts with tools that are edited anywhere, branch and are taken up again: what is reused;
                                 --api chat, messages or responses
    scripts/load.py soak --pid PID      mixed short requests: memory, descriptors and threads over time
    scripts/load.py overload     ten times more than fits: how soon refusals come, how soon it recovers
    scripts/load.py slow         sockets that send a byte a second: whether a real request is answered

`clients` works with every server that has OpenAI's /v1/completions; the others read Millpond's /metrics.
"""

import argparse
import http.client
import json
import os
import random
import socket
import statistics
import sys
import threading
import time
from urllib.parse import urlsplit

WORDS = ("river stone cloud lantern meadow winter horse garden silver window bridge candle forest letter market "
         "mountain ocean paper quiet road summer table village water yellow bread corner feather").split()


class Server:
    def __init__(self, url, key):
        parts = urlsplit(url)
        self.host, self.port = parts.hostname, parts.port or 80
        self.headers = {"content-type": "application/json"}
        if key:
            self.headers["authorization"] = "Bearer " + key

    def connect(self, timeout=600):
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def post(self, path, body, timeout=600):
        """Status, headers and parsed body."""
        connection = self.connect(timeout)
        try:
            connection.request("POST", path, json.dumps(body), self.headers)
            response = connection.getresponse()
            text = response.read()
            return response.status, response.headers, json.loads(text) if text else None
        finally:
            connection.close()

    def get(self, path):
        connection = self.connect()
        try:
            connection.request("GET", path, headers=self.headers)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def metric(self, name):
        for line in self.get("/metrics").splitlines():
            if line.split("{")[0].split(" ")[0] == "millpond_" + name:
                return float(line.rsplit(" ", 1)[1])
        raise SystemExit(f"the server has no metric {name}")

    def stream(self, path, body, on_event):
        """Calls on_event(value, time) for each event; returns the status."""
        connection = self.connect()
        try:
            connection.request("POST", path, json.dumps({**body, "stream": True}), self.headers)
            response = connection.getresponse()
            if response.status != 200:
                response.read()
                return response.status
            for line in response:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    on_event(json.loads(line[6:]), time.monotonic())
            return 200
        finally:
            connection.close()

    def ids(self, count, seed):
        """A prompt of exactly so many tokens."""
        picker = random.Random(seed)
        text = " ".join(picker.choice(WORDS) for _ in range(count + 16))
        status, _, value = self.post("/tokenize", {"content": text})
        if status != 200:
            raise SystemExit(f"/tokenize answers {status}")
        return value["tokens"][:count]


def together(count, work):
    """Runs work(i) in `count` threads and returns what they return, in order."""
    results = [None] * count

    def run(i):
        results[i] = work(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def report(**figures):
    print(json.dumps({name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}))
    sys.stdout.flush()


def clients(server, args):
    prompts = [server.ids(args.prompt, 1000 * args.seed + i) for i in range(args.clients * args.rounds)]
    barrier = threading.Barrier(args.clients + 1)

    def one(i):
        firsts, tokens = [], 0
        barrier.wait()
        for turn in range(args.rounds):
            begun, first, count = time.monotonic(), [], [0]

            def event(value, now):
                choices = value.get("choices") or [{}]
                if choices[0].get("text"):
                    first.append(now)
                usage = value.get("usage")
                if usage:
                    count[0] = usage["completion_tokens"]

            body = {"prompt": prompts[i * args.rounds + turn], "max_tokens": args.predict, "ignore_eos": True,
                    "temperature": 0, "cache_prompt": False, "stream_options": {"include_usage": True}}
            status = server.stream("/v1/completions", body, event)
            if status != 200:
                raise SystemExit(f"/v1/completions answers {status}")
            firsts.append(first[0] - begun if first else 0.0)
            tokens += count[0]
        return firsts, tokens

    results = []
    runner = threading.Thread(target=lambda: results.extend(together(args.clients, one)))
    runner.start()
    barrier.wait()
    begun = time.monotonic()
    runner.join()
    took = time.monotonic() - begun
    written = sum(tokens for _, tokens in results)
    read = args.clients * args.rounds * args.prompt
    firsts = sorted(first for found, _ in results for first in found)
    report(scenario="clients", clients=args.clients, prompt=args.prompt, predict=args.predict, seconds=took,
           generated=written, generated_per_second=written / took, all_per_second=(read + written) / took,
           first_token_median=statistics.median(firsts), first_token_worst=firsts[-1])


def first_token(server, prompt, predict=4):
    begun, first = time.monotonic(), []
    # llama.cpp's API reports every token, even one that is no text yet.
    server.stream("/completion", {"prompt": prompt, "n_predict": predict, "ignore_eos": True},
                  lambda value, now: first.append(now))
    return first[0] - begun


def gap(server, args):
    long_prompt = server.ids(args.long, args.seed)
    shorts = [server.ids(32, args.seed + 50 + i) for i in range(4)]
    solo = statistics.median(first_token(server, prompt) for prompt in shorts[:3])
    stop, gaps, started = threading.Event(), [], threading.Barrier(args.streams + 1)

    def stream(i):
        times, waited = [], []

        def event(value, now):
            times.append(now)
            if len(times) == 8:
                started.wait()
            if stop.is_set():
                raise StopIteration

        try:
            server.stream("/completion", {"prompt": server.ids(16, i), "n_predict": args.predict, "ignore_eos": True},
                          event)
        except StopIteration:
            pass
        gaps.append((times, waited))

    threads = [threading.Thread(target=stream, args=(i,)) for i in range(args.streams)]
    for thread in threads:
        thread.start()
    started.wait()
    begun = time.monotonic()
    answer = {}
    reader = threading.Thread(target=lambda: answer.update(first=first_token(server, long_prompt)))
    reader.start()
    time.sleep(1.0)
    behind = first_token(server, shorts[3])
    reader.join(args.seconds)
    took = time.monotonic() - begun
    stop.set()
    for thread in threads:
        thread.join()
    silences = sorted(after - before for times, _ in gaps for before, after in zip(times, times[1:])
                      if before >= begun - 0.1)
    rates = [len(times) / (times[-1] - times[0]) for times, _ in gaps]
    jain = sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates))
    report(scenario="gap", long=args.long, streams=args.streams, longest_gap=silences[-1],
           gap_99th=silences[int(len(silences) * 0.99)], gap_median=statistics.median(silences), tokens=len(silences),
           short_alone=solo, short_behind=behind, short_bound=2 * solo + 0.5, long_first_token=answer.get("first"),
           watched_seconds=took, jain=jain)


def cancel(server, args):
    picker = random.Random(args.seed)
    prompts = [server.ids(args.prompt, args.seed + i) for i in range(8)]
    ends = []
    for i in range(args.count):
        body = json.dumps({"prompt": prompts[i % 8][: picker.randrange(1, args.prompt)], "max_tokens": 400,
                           "ignore_eos": True, "stream": bool(i % 2), "cache_prompt": False}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {server.host}:{server.port}\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in server.headers.items()) + f"content-length: {len(body)}\r\n\r\n"
        several = [socket.create_connection((server.host, server.port)) for _ in range(args.together)]
        for connection in several:
            connection.sendall(head.encode() + body)
        time.sleep(picker.uniform(0.0, args.longest))
        for connection in several:
            connection.close()
        left = time.monotonic()
        while server.metric("requests_running") + server.metric("requests_waiting") > 0:
            if time.monotonic() - left > 30:
                raise SystemExit("work goes on 30 s after its client has left")
        ends.append(time.monotonic() - left)
    ends.sort()
    report(scenario="cancel", count=args.count * args.together, seconds_until_idle_median=statistics.median(ends),
           seconds_until_idle_worst=ends[-1], bytes_reserved_after=server.metric("sequence_bytes"))


def reuse(server, args):
    def text(seed, words):
        picker = random.Random(seed)
        return " ".join(picker.choice(WORDS) for _ in range(words))

    def ask(messages):
        status, _, value = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 24})
        if status != 200:
            raise SystemExit(f"/v1/chat/completions answers {status}: {value}")
        usage = value["usage"]
        details = usage["prompt_tokens_details"]
        return value["choices"][0]["message"]["content"], usage["prompt_tokens"], details["cached_tokens"]

    def tokens(messages):
        """Tokens of the prompt that these messages and the start of an answer are."""
        status, _, value = server.post("/v1/chat/completions/input_tokens", {"messages": messages})
        return value["input_tokens"]

    turns, messages, known = [], [{"role": "system", "content": text(args.seed, 120)}], 0
    for turn in range(args.turns):
        messages.append({"role": "user", "content": text(args.seed + turn + 1, 40)})
        answer, count, cached = ask(messages)
        if turn:
            turns.append(cached / known)
        known = count
        messages.append({"role": "assistant", "content": answer})
    edited = messages[:-2] + [{"role": "user", "content": "Something else: " + text(args.seed + 99, 40)}]
    shared = tokens(messages[:-2])
    _, _, cached = ask(edited)
    edit = cached / shared
    stamp = [{"role": "user", "content": text(args.seed + 7, 300) + " The time is 2026-11-26 10:00:00"}]
    ask(stamp)
    later = [{"role": "user", "content": stamp[0]["content"][:-8] + "10:07:31"}]
    _, count, cached = ask(later)
    changed = 8 + 6  # tokens of the time and of the end of the message
    report(scenario="reuse", turns=len(turns) + 1, least_of_turns=min(turns), edited_last_turn=edit,
           changed_timestamp=cached / (count - changed))


def messages_body(messages, tools):
    """A transcript in the words of Anthropic's API."""
    turns = []
    for message in messages[1:]:
        if message["role"] == "tool":
            turns.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": message["tool_call_id"],
                                                       "content": message["content"]}]})
            continue
        blocks = [{"type": "text", "text": message["content"]}] if message["content"] else []
        blocks += [{"type": "tool_use", "id": call["id"], "name": call["function"]["name"],
                    "input": json.loads(call["function"]["arguments"])} for call in message.get("tool_calls", [])]
        turns.append({"role": message["role"], "content": blocks})
    named = [{"input_schema" if key == "parameters" else key: value for key, value in tool["function"].items()}
             for tool in tools]
    return {"system": messages[0]["content"], "messages": turns, "tools": named}


def responses_body(messages, tools):
    """A transcript in the words of OpenAI's Responses API."""
    items = []
    for message in messages[1:]:
        if message["role"] == "tool":
            items.append({"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]})
            continue
        if message["content"]:
            items.append({"type": "message", "role": message["role"], "content": message["content"]})
        items += [{"type": "function_call", "call_id": call["id"], **call["function"]} for call in message.get("tool_calls", [])]
    return {"instructions": messages[0]["content"], "input": items, "tools": [{"type": "function", **tool["function"]} for tool in tools]}


def texts(parts, kind):
    return "".join(part["text"] for part in parts if part["type"] == kind)


# How to ask, and what an answer says: tokens of the prompt, tokens reused, text.
APIS = {
    "chat": ("/v1/chat/completions", lambda messages, tools: {"messages": messages, "tools": tools},
             lambda value: (value["usage"]["prompt_tokens"], value["usage"]["prompt_tokens_details"]["cached_tokens"],
                            value["choices"][0]["message"]["content"] or "")),
    "messages": ("/v1/messages", messages_body,
                 lambda value: (value["usage"]["input_tokens"] + value["usage"]["cache_read_input_tokens"],
                                value["usage"]["cache_read_input_tokens"], texts(value["content"], "text"))),
    "responses": ("/v1/responses", responses_body,
                  lambda value: (value["usage"]["input_tokens"], value["usage"]["input_tokens_details"]["cached_tokens"],
                                 "".join(texts(item["content"], "output_text") for item in value["output"]
                                         if item["type"] == "message"))),
}


def agents(server, args):
    picker = random.Random(args.seed)
    text = lambda low, high: " ".join(picker.choice(WORDS) for _ in range(picker.randrange(low, high)))
    tools = [{"type": "function", "function": {"name": name, "description": text(20, 40), "parameters": {
        "type": "object", "properties": {"path": {"type": "string"}}}}} for name in ("read", "write", "search")]
    known, transcripts, shares, misses = [], [], [], []

    def prompt_of(messages):
        status, _, value = server.post("/apply-template", {"messages": messages, "tools": tools})
        if status != 200:
            raise SystemExit(f"/apply-template answers {status}: {value}")
        return server.post("/tokenize", {"content": value["prompt"]})[2]["tokens"]

    def common(a, b):
        count = 0
        while count < min(len(a), len(b)) and a[count] == b[count]:
            count += 1
        return count

    def ask(messages, kind):
        ids = prompt_of(messages)
        # The last token has to run in any case.
        reusable = min(max((common(ids, other) for other in known), default=0), len(ids) - 1)
        path, body, read = APIS[args.api]
        status, _, value = server.post(path, {**body(messages, tools), "max_tokens": 24, "max_output_tokens": 24})
        if status != 200:
            raise SystemExit(f"{path} answers {status}: {value}")
        count, cached, answer = read(value)
        if count != len(ids):
            raise SystemExit(f"{path} makes {count} tokens of what {len(ids)} were expected of")
        if reusable >= 64:
            shares.append((kind, cached / reusable))
            misses.append(reusable - cached)
        known.append(ids)
        return answer

    def step(messages, kind):
        answer = ask(messages, kind)
        # What is no text of an answer (thoughts, calls that come by chance) is left out.
        call = {"id": f"call{len(messages)}", "type": "function",
                "function": {"name": picker.choice(("read", "write", "search")), "arguments": json.dumps({"path": text(1, 3)})}}
        messages += [{"role": "assistant", "content": answer, "tool_calls": [call]},
                     {"role": "tool", "tool_call_id": call["id"], "content": text(20, 160)}]

    system = {"role": "system", "content": text(300, 400)}
    for turn in range(args.turns):
        if not transcripts or picker.random() < 0.1:
            transcripts.append([system, {"role": "user", "content": text(20, 60)}])
            kind = "begun"
        else:
            messages, choice = picker.choice(transcripts), picker.random()
            kind = "continued"
            if choice < 0.25 and len(messages) > 4:
                # Another way from somewhere in the middle; the old one stays.
                cut = picker.randrange(2, len(messages))
                cut += messages[cut]["role"] == "tool"
                transcripts.append(messages[:cut] + [{"role": "user", "content": text(10, 40)}])
                kind = "branched"
            elif choice < 0.4 and len(messages) > 4:
                # A message is edited and what came after it is asked again.
                place = picker.choice([i for i, message in enumerate(messages) if message["role"] in ("user", "tool")])
                edited = dict(messages[place], content=messages[place]["content"] + " " + text(2, 6))
                transcripts.append(messages[:place] + [edited] + messages[place + 1:])
                kind = "edited"
            if kind != "continued":
                messages = transcripts[-1]
            else:
                transcripts.remove(messages)
                transcripts.append(messages)
        messages = transcripts[-1]
        if messages[-1]["role"] == "assistant":
            messages.append({"role": "user", "content": text(10, 30)})
        step(messages, kind)
    kinds = {}
    for kind, share in shares:
        kinds.setdefault(kind, []).append(share)
    report(scenario="agents", api=args.api, turns=args.turns, transcripts=len(transcripts), worst=min(share for _, share in shares),
           most_tokens_missed=max(misses), below_95_percent=sum(share < 0.95 for _, share in shares),
           **{f"median_{kind}": statistics.median(found) for kind, found in kinds.items()})


def process(pid):
    status = open(f"/proc/{pid}/status").read()
    field = lambda name: int(status.split(name + ":")[1].split()[0])
    return field("VmRSS"), len(os.listdir(f"/proc/{pid}/fd")), field("Threads")


def soak(server, args):
    kinds = [
        ("/v1/completions", lambda r: {"prompt": text(r), "max_tokens": r.randrange(1, 12)}),
        ("/v1/chat/completions", lambda r: {"messages": [{"role": "user", "content": text(r)}], "max_tokens": 6}),
        ("/v1/chat/completions", lambda r: {"messages": [{"role": "user", "content": text(r)}], "max_tokens": 6,
                                            "stream": True}),
        ("/v1/messages", lambda r: {"messages": [{"role": "user", "content": text(r)}], "max_tokens": 4}),
        ("/completion", lambda r: {"prompt": text(r), "n_predict": 4, "n_probs": 2}),
        ("/tokenize", lambda r: {"content": text(r)}),
        ("/v1/embeddings", lambda r: {"input": text(r)}),
        ("/v1/completions", lambda r: {"prompt": text(r), "max_tokens": 8, "grammar": 'root ::= "yes" | "no"'}),
        ("/v1/completions", lambda r: {"prompt": text(r), "max_tokens": -1}),
        ("/v1/responses", lambda r: {"input": text(r), "max_output_tokens": 4}),
    ]

    def text(picker):
        return " ".join(picker.choice(WORDS) for _ in range(picker.randrange(2, 24)))

    left, lock, statuses, begun = [args.count], threading.Lock(), {}, time.monotonic()

    def client(i):
        picker = random.Random(args.seed + i)
        connection = server.connect()
        while True:
            with lock:
                if left[0] == 0 or time.monotonic() - begun > args.seconds:
                    break
                left[0] -= 1
            path, body = picker.choice(kinds)
            connection.request("POST", path, json.dumps(body(picker)), server.headers)
            response = connection.getresponse()
            response.read()
            with lock:
                key = (path, response.status)
                statuses[key] = statuses.get(key, 0) + 1
        connection.close()

    samples, done = [], threading.Event()

    def watch():
        while not done.wait(args.every):
            samples.append((time.monotonic() - begun, args.count - left[0], *process(args.pid)))

    if args.pid:
        watcher = threading.Thread(target=watch)
        watcher.start()
    together(args.clients, client)
    took = time.monotonic() - begun
    if args.pid:
        time.sleep(1.0)
        samples.append((time.monotonic() - begun, args.count - left[0], *process(args.pid)))
        done.set()
        watcher.join()
        for when, count, resident, descriptors, threads in samples[:: max(1, len(samples) // 12)] + samples[-1:]:
            report(seconds=when, requests=count, resident_kib=resident, descriptors=descriptors, threads=threads)
    errors = {f"{path} {status}": count for (path, status), count in statuses.items() if status not in (200, 400)}
    wrong = sum(count for (path, status), count in statuses.items() if status == 400 and path != "/v1/completions")
    report(scenario="soak", requests=sum(statuses.values()), seconds=took, errors=errors, unexpected_refusals=wrong)


def overload(server, args):
    limit = int(server.metric("requests_running_limit"))
    body = {"prompt": server.ids(64, args.seed), "max_tokens": args.predict, "ignore_eos": True}
    alone = [timed(server, body) for _ in range(3)]
    calm = statistics.median(took for _, took in alone)
    refused, served, other, until = [], [], [], time.monotonic() + args.seconds

    def client(_):
        while time.monotonic() < until:
            try:
                status, took = timed(server, body)
            except OSError as error:
                other.append(str(error))
                continue
            (served if status == 200 else refused if status == 429 else other).append(took)
            if status != 200:
                time.sleep(args.pause)

    together(args.factor * limit, client)
    begun, recovered = time.monotonic(), None
    while recovered is None and time.monotonic() - begun < 30:
        if timed(server, body)[1] <= 1.5 * calm:
            recovered = time.monotonic() - begun
    refused.sort()
    report(scenario="overload", clients=args.factor * limit, served=len(served), refused=len(refused),
           other=len(other), refusal_median=statistics.median(refused) if refused else None,
           refusal_99th=refused[int(len(refused) * 0.99)] if refused else None,
           refusal_worst=refused[-1] if refused else None, alone=calm, recovery_seconds=recovered)


def timed(server, body):
    begun = time.monotonic()
    status, _, _ = server.post("/v1/completions", body)
    return status, time.monotonic() - begun


def slow(server, args):
    sockets = []
    for _ in range(args.sockets):
        connection = socket.create_connection((server.host, server.port))
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nho")
        sockets.append(connection)
    body = {"prompt": "Once", "max_tokens": 1}
    took = []
    for _ in range(args.rounds):
        for connection in sockets:
            try:
                connection.sendall(b"s")
            except OSError:
                pass
        took.append(timed(server, body)[1])
        time.sleep(0.8)
    for connection in sockets:
        connection.close()
    report(scenario="slow", sockets=len(sockets), request_median=statistics.median(took), request_worst=max(took))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8137")
    parser.add_argument("--key", help="API key")
    parser.add_argument("--seed", type=int, default=1)
    scenarios = parser.add_subparsers(dest="scenario", required=True)

    def scenario(function, **defaults):
        arguments = scenarios.add_parser(function.__name__)
        arguments.set_defaults(run=function)
        for name, default in defaults.items():
            arguments.add_argument("--" + name, type=type(default), default=default)

    scenario(clients, clients=8, prompt=512, predict=64, rounds=1)
    scenario(gap, long=32768, streams=4, predict=4000, seconds=100.0)
    scenario(cancel, count=50, together=4, prompt=600, longest=0.6)
    scenario(reuse, turns=10)
    scenario(agents, turns=60, api="chat")
    scenario(soak, count=10000, clients=16, seconds=600.0, every=2.0, pid=0)
    scenario(overload, factor=10, seconds=60.0, predict=64, pause=0.2)
    scenario(slow, sockets=1000, rounds=8)
    args = parser.parse_args()
    args.run(Server(args.url, args.key), args)


if __name__ == "__main__":
    main()
