"""Render chat templates over many conversations as transformers renders them.

usage: python chat_templates.py OUT.json      (packages: requirements.txt)

The templates in chat_templates/ were written for this purpose in the manner of those that models ship.
expressions.jinja is many small templates with a common beginning, apart by lines of four dashes.

OUT.json: {"now": [year, month, day, hour, minute, second], "templates": {NAME: text}, "conversations": [messages],
"tools": [tool list], "cases": [CASE]}; a CASE has template, conversation and tools (indices; tools may be null),
add_generation_prompt, variables (further template variables, special tokens among them) and either rendered or error,
the text given to raise_exception (null if something else fails).
"""
import datetime
import json
import os
import sys

import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = os.path.dirname(os.path.abspath(__file__))
NOW = datetime.datetime(2026, 3, 5, 7, 8, 9)
MINIMAL = ("{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}"
           "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")
EXTRA = {
    "minimal": MINIMAL,
    "clock": "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %b %Y') }} {{ strftime_now('%B %A %H:%M:%S') }} {{ strftime_now('%y %m %e %j %I %p %%') }}",
    "empty": "",
    "plain_text": "no variables\n",
    "unknown_filter": "{{ messages | no_such_filter }}",
    "syntax_error": "{% for m in messages %}{{ m.content }}",
    "none_plus_text": "{{ none + 'x' }}",
    "attribute_of_undefined": "{{ nothing.attribute }}",
    "newline_at_end": "{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n",
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Get the weather.\nReturns text & \"quotes\".", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "A city, e.g. Z\u00fcrich <CH>"},
                                     "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}, "days": {"type": "integer"}}, "required": ["city"]}}}
SEARCH = {"type": "function", "function": {"name": "search", "description": "Search.", "parameters": {
    "type": "object", "properties": {"queries": {"type": "array", "items": {"type": "string"}},
                                     "filter": {"type": "object", "properties": {"year": {"type": "number"}, "tags": {"type": "array"}}, "required": ["year"]}},
    "required": []}}}
EMPTY_TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
user = lambda content: {"role": "user", "content": content}
system = lambda content: {"role": "system", "content": content}
assistant = lambda content, **more: {"role": "assistant", "content": content, **more}
tool = lambda content, **more: {"role": "tool", "content": content, **more}
call = lambda name, arguments, **more: {"type": "function", "function": {"name": name, "arguments": arguments}, **more}
CALL = call("get_weather", {"city": "Z\u00fcrich", "days": 3, "note": "a \"b\" <c> \u4f60\u597d"}, id="abcdefg12")
CONVERSATIONS = [
    [user("Hello")],
    [user("")],
    [user("  spaces around  \n")],
    [user("\u4f60\u597d \U0001f600 <b>&amp;</b> \"q\" 'a' \\ {{ x }} {% y %}")],
    [system("You are terse."), user("Hi")],
    [system("  You are terse.\n\n"), user("Hi"), assistant("Yes?"), user("2+2?")],
    [user("a"), assistant("b"), user("c"), assistant("d"), user("e")],
    [user("a"), assistant("b")],
    [user("q"), assistant("<think>\nhm\n</think>\n\nanswer"), user("again")],
    [user("q"), assistant("answer", reasoning_content="because\n"), user("again")],
    [user("q"), assistant("answer", reasoning_content="because")],
    [user("Weather?"), assistant("", tool_calls=[CALL])],
    [user("Weather?"), assistant("Let me see.", tool_calls=[CALL]), tool("{\"t\": 21}", tool_call_id="abcdefg12")],
    [user("Weather?"), assistant("", tool_calls=[CALL]), tool("21", tool_call_id="abcdefg12"), assistant("It is 21."), user("Thanks")],
    [system("S"), user("two"), assistant("x", reasoning_content="plan", tool_calls=[CALL, call("search", {"queries": ["a", "b"], "filter": {"year": 2.5, "deep": {"k": [1, None, True]}}}, id="123456789")]),
     tool("one", tool_call_id="abcdefg12"), tool("two", tool_call_id="123456789"), assistant("done")],
    [user("no arguments"), assistant("", tool_calls=[call("now", {}, id="aaaaaaaaa")]), tool("12:00", tool_call_id="aaaaaaaaa")],
    [user([{"type": "text", "text": "What is "}, {"type": "image"}, {"type": "text", "text": " this? "}])],
    [system([{"type": "text", "text": "Be kind."}]), user([{"type": "text", "text": "Hi"}])],
    [system([{"type": "image"}]), user("Hi")],
    [user("<tool_response>\nx\n</tool_response>")],
    [user("a"), user("b")],
    [assistant("I start"), user("then I")],
    [user("a"), system("late")],
    [{"role": "narrator", "content": "Once."}, user("a")],
    [user("stop here"), {"role": "assistant", "content": "last", "stop": True}, user("unseen")],
    [],
]
TOOLS = [[WEATHER], [WEATHER, SEARCH, EMPTY_TOOL]]
VARIABLES = [{}, {"enable_thinking": False}, {"enable_thinking": True, "preserve_thinking": True}, {"date_string": "1 Jan 2000"}]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def rendered(tokenizer, case, template):
    try:
        text = tokenizer.apply_chat_template(
            CONVERSATIONS[case["conversation"]], tools=None if case["tools"] is None else TOOLS[case["tools"]], chat_template=template, tokenize=False,
            add_generation_prompt=case["add_generation_prompt"], **{k: v for k, v in case["variables"].items() if k not in TOKENS})
        return {"rendered": text}
    except jinja2.exceptions.TemplateSyntaxError:
        return {"error": None}
    except jinja2.exceptions.TemplateError as error:
        raised = type(error) is jinja2.exceptions.TemplateError
        return {"error": str(error) if raised else None}
    except Exception:  # what Python says of a wrong operand is no one else's business
        return {"error": None}


def load_templates():
    templates = {}
    for file in sorted(os.listdir(f"{HERE}/chat_templates")):
        with open(f"{HERE}/chat_templates/{file}") as source:
            text, name = source.read(), file.removesuffix(".jinja")
        if name == "expressions":
            beginning, *rest = text.split("----\n")
            for snippet in rest:
                label = next(word for line in snippet.splitlines() for word in line.split()[:1] if word.replace("_", "").isalpha())
                templates[f"expressions.{label}"] = beginning + snippet
        else:
            templates[name] = text
    return templates


def cases_of(name):
    """Which conversations, tools, prompts and variables a template is tried with."""
    if name.startswith("expressions."):
        return [(4, None, True, {}), (5, None, True, {})]
    if name in EXTRA and name != "minimal":
        return [(0, None, True, {})]
    out = []
    for number in range(len(CONVERSATIONS)):
        for tools in [None] if name == "minimal" else [None, 0] if number % 2 else [None, 0, 1]:
            for prompt in [True, False] if number % 3 == 0 or name == "xml_tools" else [True]:
                for variables in VARIABLES if name in ("xml_tools", "dated_headers") and number % 4 == 1 else VARIABLES[:1]:
                    out.append((number, tools, prompt, variables))
    return out


def main(out):
    chat_template_utils.datetime = FixedClock
    templates, cases = load_templates() | EXTRA, []
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **TOKENS)
    for name, template in templates.items():
        for conversation, tools, prompt, variables in cases_of(name):
            case = {"template": name, "conversation": conversation, "tools": tools, "add_generation_prompt": prompt, "variables": TOKENS | variables}
            cases.append(case | rendered(tokenizer, case, template))
    line = lambda values: "[\n" + ",\n".join(json.dumps(value, separators=(",", ":")) for value in values) + "\n]"
    with open(out, "w") as file:
        file.write('{"now":' + json.dumps([NOW.year, NOW.month, NOW.day, NOW.hour, NOW.minute, NOW.second]) + ',\n"templates":')
        json.dump(templates, file, indent=0)
        file.write(f',\n"conversations":{line(CONVERSATIONS)},\n"tools":{line(TOOLS)},\n"cases":{line(cases)}}}\n')
    for name in templates:
        mine = [c for c in cases if c["template"] == name]
        print(name, len(mine), "rendered", sum("rendered" in c for c in mine), "raised", sum(bool(c.get("error")) for c in mine))


if __name__ == "__main__":
    main(*sys.argv[1:])
