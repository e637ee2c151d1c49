"""Chat templates in the manner of several families, each with what makes it hard to render.

Next: test_template.py.
"""

BEGIN = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
END = "<\uff5cend\u2581of\u2581sentence\uff5c>"
USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
CALLS, CALL, SEP, CALL_END = (
    f"<\uff5c{name}\uff5c>"
    for name in (
        "tool\u2581calls\u2581begin",
        "tool\u2581call\u2581begin",
        "tool\u2581sep",
        "tool\u2581call\u2581end",
    )
)
# As in DeepSeek's tokenizers: only some of the tokens that structure a conversation are special.
SPECIAL = (BEGIN, END, "<|im_start|>", "<|im_end|>")
CONTROL = (USER, ASSISTANT, "<think>", "</think>", CALLS, CALL, SEP, CALL_END)

# Constants joined by `+`, a namespace, arguments as text, thoughts cut off earlier answers.
DEEPSEEK = f"""\
{{%- set ns = namespace(system='', in_tool=false) -%}}
{{%- for message in messages if message['role'] == 'system' -%}}
    {{%- set ns.system = ns.system + message['content'] -%}}
{{%- endfor -%}}
{{{{- bos_token + ns.system -}}}}
{{%- for message in messages -%}}
    {{%- if message['role'] == 'user' -%}}
        {{{{- '{USER}' + message['content'] -}}}}
    {{%- elif message['role'] == 'assistant' and message['tool_calls'] -%}}
        {{{{- '{ASSISTANT}{CALLS}' -}}}}
        {{%- for call in message['tool_calls'] -%}}
            {{{{- '{CALL}' + call['function']['name'] + '{SEP}' -}}}}
            {{{{- call['function']['arguments'] + '{CALL_END}' -}}}}
        {{%- endfor -%}}
        {{{{- eos_token -}}}}
    {{%- elif message['role'] == 'assistant' -%}}
        {{%- set content = message['content'] -%}}
        {{%- if '</think>' in content -%}}
            {{%- set content = content.split('</think>', 1)[1] -%}}
        {{%- endif -%}}
        {{{{- '{ASSISTANT}' + content + eos_token -}}}}
    {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- '{ASSISTANT}<think>\\n' -}}}}{{%- endif -%}}"""

# Text between tags, filters, a macro, loop variables, arguments as objects, tools as JSON.
CHATML = """\
{% macro turn(role, content) %}<|im_start|>{{ role }}
{{ content | trim }}<|im_end|>
{% endmacro %}
{% if tools %}
<|im_start|>system
{% for tool in tools %}
{{ tool | tojson }}
{% endfor %}
<|im_end|>
{% endif %}
{% for message in messages %}
{% if loop.first and message.role != 'system' %}
{{ turn('system', 'Answer briefly.') }}
{%- endif %}
{% if message.role == 'assistant' and message.tool_calls %}
{% for call in message.tool_calls %}
{% set call = call.function %}
{% set arguments = call.arguments | tojson %}
{{ turn('assistant', '{"name": "' ~ call.name ~ '", "arguments": ' ~ arguments ~ '}') }}
{%- endfor %}
{% else %}
{% set is_answer = message.role == 'assistant' %}
{{ turn(message.role, message.content.split('</think>')[-1] if is_answer else message.content) }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{% generation %}<|im_start|>assistant
{% endgeneration %}
{% endif %}"""
