"""Render small templates, one language feature each, and a few whole chat templates with transformers' own engine.

usage: python template_features.py OUT.json      (packages: requirements.txt)

OUT.json: [{"template": str, "messages": [..], "tools": [..] or null, "add_generation_prompt": bool, "options": {..},
"text": str} or the same with "raised": str (message of raise_exception) or "failed": true instead of "text"].
"""
import json
import sys

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

USER = [{"role": "user", "content": "Hi there"}]
TALK = [
    {"role": "system", "content": " Be kind. \n"},
    {"role": "user", "content": "What is 2 + 2?\n"},
    {"role": "assistant", "content": "<think>\nsum\n</think>\n\n4", "reasoning_content": None},
    {"role": "user", "content": "and <b>\"quoted\" & 'single'</b> \u00e9\u4e2d\U0001f600?"},
]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Weather <now> & later", "parameters": {
        "type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "Stra\u00dfe \u4e2d"}, "days": {"type": "integer", "minimum": 1, "default": None},
            "scale": {"type": "number", "maximum": 1.5e300, "minimum": -0.0001, "multipleOf": 1e-7}, "flag": {"type": "boolean", "default": True}}}}},
    {"type": "function", "function": {"name": "noop", "parameters": {}}},
]
CALLS = [
    {"role": "user", "content": "Weather in Graz and Linz?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Graz", "days": 2, "exact": True, "list": [1, "a", None, 2.0]}}},
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Linz\n", "nested": {"x": 1.5}}}}]},
    {"role": "tool", "content": "{\"t\": 20}"},
    {"role": "tool", "content": "{\"t\": 22}"},
    {"role": "assistant", "content": "Warm."},
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}]

FEATURES = [
    "plain", "{{ messages[0].content }}", "{{ messages[0]['content'] }}", "{{ messages[-1].role }}", "{{ messages | length }}",
    "a\n{% if true %}\n  b\n{% endif %}\nc\n", "  {%- if true -%}  x  {%- endif -%}  y", "{% for m in messages %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }};{% endfor %}",
    "  {% if false %}\n no\n  {% else %}\n yes\n  {% endif %}\nend", "line\n    {# comment #}\nnext", "{{ 'a' }}\n{{ 'b' }}\n", "trailing\n\n",
    "{{ true }} {{ false }} {{ none }} {{ undefined_name }}|", "{{ 1.0 }} {{ 1e20 }} {{ 0.1 + 0.2 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 7 % 3 }} {{ 2 ** 5 }} {{ -7 // 2 }}",
    "{{ [1, 'a', none, true, 2.5] }} {{ {'k': 'v', 'n': [1]} }} {{ (1, 2) }}", "{{ ['it\\'s'] }} {{ ['a\\nb'] }}",
    "{{ {'a': 1, 'b': [true, none]} | tojson }}", "{{ messages[0] | tojson }}", "{{ {'a': 1, 'b': [1, 2], 'c': {}, 'd': []} | tojson(indent=2) }}", "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}",
    "{{ {'a': [1, 2]} | tojson(separators=(',', ':')) }}", "{{ '\u00e9\U0001f600\u007f\u0001' | tojson }} {{ '\u00e9\U0001f600' | tojson(ensure_ascii=true) }}", "{{ '<&>\\'\"' | tojson }}",
    "{{ [1.0, 1e16, 1e15, 1e-5, 0.0001, 123456789.125, 1e300, -0.0, 1e22, 5e-324] | tojson }}", "{{ {1: 2, none: 3, true: 4} | tojson }}", "{{ [none] | tojson(indent=4) }}", "{{ nothing | tojson }}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = i %}{% endfor %}{{ x }}", "{% set ns = namespace(x=0, y='q') %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}",
    "{% for m in messages[::-1] %}{{ m.role }},{% endfor %}", "{% for i in range(3) %}{{ i }}{% endfor %} {{ range(2, 8, 2) | list }}", "{{ 'abcdef'[1:4] }}{{ 'abc'[::-1] }}{{ 'abc'[-1] }}",
    "{{ '  x '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ '\n\na\n'.lstrip('\n') }}|{{ 'a\n'.rstrip('\n') }}|{{ ' y ' | trim }}|", "{{ 'a,b,c'.split(',') }} {{ 'a</t>b</t>c'.split('</t>')[-1] }} {{ 'a b  c'.split() }}",
    "{{ 'Abc'.startswith('A') }} {{ 'Abc'.endswith('c') }} {{ 'abc'.upper() }} {{ 'ABC' | lower }} {{ 'abc'.title() }} {{ 'abc'.capitalize() }}", "{{ 'a-b-c'.replace('-', '+') }} {{ 'a-b' | replace('-', '') }}",
    "{{ 'b' in 'abc' }} {{ 'x' not in ['a'] }} {{ 'k' in {'k': 1} }}", "{{ 'a' ~ 1 ~ none ~ true ~ 2.0 }}", "{{ 'a' + 'b' }}", "{{ 'a' * 3 }}", "{{ 'x' if messages else 'y' }}{{ 'z' if false }}",
    "{{ messages[0].missing is defined }} {{ messages[0].content is string }} {{ messages is iterable }} {{ messages[0] is mapping }} {{ 3 is number }} {{ none is none }} {{ 1 is integer }} {{ 1.5 is float }} {{ true is boolean }} {{ messages is sequence }}",
    "{{ true is true }} {{ false is false }} {{ 4 is even }} {{ 4 is divisibleby 2 }} {{ 'a' is eq 'a' }} {{ 1 is sameas 1 }} {{ 'a' is in ['a'] }}",
    "{{ messages[0].get('role') }} {{ messages[0].get('none', 'dflt') }} {{ messages[0].get('none') }}", "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in messages[0] | items %}{{ k }}={{ v }};{% endfor %}",
    "{{ messages[0].keys() | list }} {{ messages[0].values() | list }}", "{% for k in messages[0] %}{{ k }} {% endfor %}", "{{ {'b': 1, 'a': 2} | dictsort }}", "{{ messages | map(attribute='role') | join('/') }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'eq', 'user') | list | length }} {{ [1, none, 0, 2] | select | list }}", "{{ [3, 1, 2] | sort }} {{ [1, 2, 3] | reverse | list }} {{ [1, 2] | first }} {{ [1, 2] | last }} {{ [1, 2] | sum }} {{ [1, 1, 2] | unique | list }}",
    "{{ nothing | default('d') }} {{ '' | default('d', true) }} {{ none | default('d') }}", "{{ 'abc' | length }} {{ 'a b' | wordcount }} {{ 'abc' | first }} {{ 'a' | string }} {{ 12 | string }} {{ '3' | int + 1 }} {{ '2.5' | float }} {{ true | int }} {{ -3 | abs }} {{ 2.567 | round(1) }}",
    "{{ 'x\ny' | indent(2) }}|{{ 'x\ny' | indent(2, true) }}", "{{ '%s-%d' | format('a', 3) }} {{ '{}-{}'.format('a', 3) }}", "{{ [1, 2] + [3] }} {{ [[1, 2], [3]] | map('length') | list }} {{ ['a', 'b'] | map('upper') | list }}",
    "{% macro show(x, sep=',') %}{{ x }}{{ sep }}{% endmacro %}{{ show(1) }}{{ show(2, sep=';') }}", "{% macro wrap() %}<{{ caller() }}>{% endmacro %}{% call wrap() %}in{% endcall %}", "{% set block %}\n captured {{ 1 }}\n{% endset %}[{{ block }}]",
    "{% filter upper %}abc{% endfilter %}", "{% for i in [1, 2, 3, 4] %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}", "{% for i in [] %}x{% else %}empty{% endfor %}", "{% for i in [1, 2, 3] if i != 2 %}{{ i }}{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined else '-' }}>{{ m.role }}>{{ loop.nextitem.role if loop.nextitem is defined else '-' }} {{ loop.length }}{{ loop.revindex }} {% endfor %}", "{{ loop is defined }}",
    "{% raw %}{{ not }}{% endraw %}", "{{ '{{' }}", "{% generation %}answer{% endgeneration %}\nend", "{% for m in messages %}\n  {%- generation -%}\n  {{ m.content }}\n  {%- endgeneration +%}\n{% endfor %}", "{% generation %}{% set y = 1 %}{% endgeneration %}{{ y is defined }}",
    "{{ raise_exception('No ' + messages[0].role) }}", "{{ messages[9].content }}", "{{ nothing.attribute }}", "{{ messages[0].content.missing_method() }}", "{{ 'a' + 1 }}", "{% if messages[0].role == 'user' and not messages[0].tool_calls %}ok{% endif %}",
    "{{ enable_thinking is defined and enable_thinking is false }} {{ enable_thinking }} {{ reasoning_effort }}", "{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}", "{{ dict(a=1, b=2) }}", "{{ [1, 2, 3][1:] }} {{ (1, 2, 3)[:-1] }}",
    "{{ 'a\\nb\\tc\\\\d' }}", "{{ 'caf\\u00e9' }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set m = messages[0] %}{{ m['role'] }}", "{{ not true }} {{ 1 < 2 < 3 }} {{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ none == none }} {{ [] == [] }} {{ '' or 'x' }} {{ 'y' and 'z' }}", "{{ messages[0].content | safe }}{{ '<' | e }}",
    "{{ messages[0].role.count('s') }} {{ 'a.b'.rsplit('.', 1) }}", "{{ 'x'.join(['a', 'b']) }} {{ ['a', 'b'] | join }} {{ 'abc'.find('c') }} {{ '12'.isdigit() }} {{ 'ab'.isalpha() }} {{ 'a\nb'.splitlines() }}", "{%- set out = [] %}{%- set _ = out.append('x') %}{{ out }}",
    "{{ 'ab' | list }} {{ messages[0].items() | list }}", "{{ 100000 * 100000 }} {{ 99999999999999999999 }} {{ 1_000 }}", "{% if 'a' is not none and 'a' != '' %}t{% endif %}", "{{- '  lead' -}}  tail  {{ 1 }} x", "{{ 1e20 | string }} {{ 1.5e-7 }}", "{{ 'a b c'.rsplit(None, 1) }} {{ 'a--b--c'.rsplit('--') }} {{ 'abc'.rsplit('x', 1) }} {{ 'a.b.c'.rsplit('.', 1)[0] }}", "a  {%+ if true %}b{% endif +%}\nc", "{{ messages | tojson(indent=2) }}",
    "{{ (messages | last).role }} {{ (messages | first)['role'] }} {{ messages | list | count }}", "{{ '\u00e9' | length }} {{ '\U0001f600a'[1] }} {{ 'STRASSE' | lower | title }}", "{{ [1, [2, 3]] | tojson }} {{ 'x' | tojson }} {{ 3 | tojson }} {{ none | tojson }} {{ 1.5 | tojson }}", "{{ strftime_now is defined }} {{ raise_exception is defined }}",
]

CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- 'Tools:' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages | length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == 'user' and message.content is string %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set thoughts = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thoughts = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thoughts) %}
            {{- '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content.lstrip('\\n') }}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {%- if call.function %}{%- set call = call.function %}{%- endif %}
                {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
                {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- elif message.role != 'system' %}
        {{- raise_exception('Unexpected message role: ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

XML_CALLS = """{%- macro text_of(content, count_images=false) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for item in content %}
            {%- if 'image' in item or item.type == 'image' %}{{- '<image>' }}
            {%- elif 'text' in item %}{{- item.text }}
            {%- else %}{{- raise_exception('Unexpected part') }}{%- endif %}
        {%- endfor %}
    {%- elif content is none or content is undefined %}
        {{- '' }}
    {%- else %}
        {{- raise_exception('Unexpected content type') }}
    {%- endif %}
{%- endmacro %}
{%- if not messages %}{{- raise_exception('No messages') }}{%- endif %}
{%- for message in messages %}
    {%- set content = text_of(message.content) | trim %}
    {%- if message.role == 'assistant' and message.tool_calls and message.tool_calls is iterable and message.tool_calls is not mapping %}
        {{- '<|im_start|>assistant\\n' + content }}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
            {{- ('\\n\\n' if loop.first and content else '\\n') + '<tool_call>\\n<function=' + call.name + '>\\n' }}
            {%- for name, value in call.arguments | items %}
                {{- '<parameter=' + name + '>\\n' }}
                {%- set value = value | tojson | safe if value is mapping or (value is sequence and value is not string) else value | string %}
                {{- value }}
                {{- '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.previtem and loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' ~ content ~ '\\n</tool_response>' }}
        {%- if not loop.last and loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- elif loop.last %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' + ('<think>\\n' if enable_thinking | default(true) else '<think>\\n\\n</think>\\n\\n') }}{%- endif %}"""


def case(template, messages, tools=None, prompt=False, options=None):
    record = {"template": template, "messages": messages, "tools": tools, "add_generation_prompt": prompt, "options": options or {}}
    try:
        compiled = _compile_jinja_template(template)
        context = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt, "bos_token": "<s>", "eos_token": "</s>"}
        record["text"] = compiled.render(**context, **(options or {}))
    except jinja2.exceptions.TemplateError as error:
        if type(error) is jinja2.exceptions.TemplateError:
            record["raised"] = str(error)
        else:
            record["failed"] = True
    except (TypeError, ValueError, AttributeError, KeyError):
        record["failed"] = True
    return record


def main(out):
    cases = [case(template, TALK if "messages" in template else USER) for template in FEATURES]
    cases += [case("{{ enable_thinking }} {{ reasoning_effort }} {{ bos_token }}{{ eos_token }}", USER, options={"enable_thinking": False, "reasoning_effort": "low"})]
    for template in (CHATML, XML_CALLS):
        parts = [PARTS] if template == XML_CALLS else []
        for messages in [USER, TALK, TALK[1:], CALLS, CALLS[:2], CALLS[:3], [{"role": "wizard", "content": "x"}]] + parts:
            for tools in (None, TOOLS):
                for options in ({}, {"enable_thinking": False}):
                    cases.append(case(template, messages, tools, True, options))
            cases.append(case(template, messages))
    with open(out, "w", encoding="utf-8") as file:
        json.dump(cases, file, ensure_ascii=True, indent=0)
        file.write("\n")
    print(len(cases), "cases,", sum("raised" in c for c in cases), "raised,", sum("failed" in c for c in cases), "failed")


main(sys.argv[1])
