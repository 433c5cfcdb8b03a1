"""Chat templates as `transformers` writes them: written ones that use what the families' own use, and published ones.

Published templates are not ours to keep here. INFALIGN_CHAT_TEMPLATES names a folder of `*.jinja` files (for instance
models/templates of llama.cpp); each is then compared on every dialogue below.
"""

import json
import os
import pathlib

import pytest

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from infalign_jax.data import chat

pytestmark = pytest.mark.peers
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Says "how" it is <there>.',
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "a town, é"},
                "days": {"type": "integer", "description": "how many"},
                "unit": {"type": "string", "enum": ["C", "F"], "description": "of the answer"},
            },
            "required": ["place"],
        },
        "return": {"type": "string", "description": "a sentence"},
    },
}
CALL = {
    "type": "function",
    "id": "call00001",
    "function": {"name": "weather", "arguments": {"place": "Bern", "days": 2}},
}
USER = {"role": "user", "content": " the <red> fox: it's 2 & 3 "}
ANSWER = {"role": "assistant", "content": "sings\n"}
SYSTEM = {"role": "system", "content": "Be plain."}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": '{"sky": "grey"}'}
DIALOGUES = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "long": [SYSTEM, USER, ANSWER, {"role": "user", "content": "Sure?"}],
    "answered": [USER, ANSWER],
    "thought": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes"}, USER],
    "reasoned": [USER, {"thinking": "hm", **ANSWER, "reasoning_content": "hm"}, USER],  # they copy either to the other
    "twice": [USER, USER],
    "tools": [SYSTEM, USER, CALLS, RESULT, {"role": "assistant", "content": "Grey."}, USER],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a bird"}]}],
}
OPTIONS = {
    "prompt": {"add_generation_prompt": True},
    "text": {"add_generation_prompt": False},
    "tools": {"add_generation_prompt": True, "tools": [WEATHER]},
    "thinking off": {"add_generation_prompt": True, "enable_thinking": False},
}

# Written for these tests, each around what one family's own template is made of.
WRITTEN = {
    "turns": "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] | trim }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}",
    "namespace": "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content %}{% endif %}{% endfor %}{{ bos_token }}{% for m in messages if m.role != 'system' %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<{{ m.role }}>{{ ns.system ~ ' ' if loop.first and ns.system }}{{ m.content }}{{ eos_token if m.role == 'assistant' }}"
    "{% endfor %}{%- if add_generation_prompt %}<assistant>{%- endif %}",
    "json": "{%- for m in messages -%}\n    {{- m | tojson }}\n{%- endfor %}\n{{ strftime_now('%Y') }}",
    "date": "{%- if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% else %}{% set day = '?' %}{% endif -%}"
    "Today: {{ day }}\n{%- for m in messages if m.content is string %}\n\n[{{ m.role | upper }}]\n{{ m.content.strip() }}\n"
    "{%- else %} nobody {% endfor %}",
    "tool calls": "{%- macro value(v) %}{% if v is mapping %}{% for k, w in v | items %}{{ k }}={{ value(w) }};{% endfor %}"
    "{% elif v is string %}'{{ v }}'{% elif v is sequence %}{{ v | join('|') }}{% else %}{{ v }}{% endif %}{% endmacro -%}\n"
    "{%- if tools %}tools:\n{% for tool in tools %}    {{ tool | tojson(indent=4) }}\n{% endfor %}{% endif %}\n"
    "{%- for m in messages %}\n  {%- if m.tool_calls is defined and m.tool_calls %}\n"
    "{{ m.role }} calls{% for c in m.tool_calls %} {{ c.function.name }}({{ value(c.function.arguments) }}){% endfor %}\n"
    "  {%- elif m.role == 'tool' %}\nresult {{ m.content | safe }}\n  {%- else %}\n{{ m.role }}: {{ m['content'] }}\n  {%- endif %}\n"
    "{%- endfor %}",
    "backwards": "{%- set ns = namespace(last=-1) %}{% for m in messages[::-1] %}{% set i = messages | length - 1 - loop.index0 %}"
    "{%- if m.role == 'user' and ns.last < 0 %}{% set ns.last = i %}{% endif %}{% endfor %}"
    "{%- for m in messages %}{% set thought = '' %}{% if m.content is string and '</think>' in m.content %}"
    "{% set thought = m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ loop.index0 > ns.last }} {{ thought }} {{ m.content }}\n{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}",
    "breaks": "{% for m in messages %}\n    {% if m.role == 'system' %}\n        {% continue %}\n    {% endif %}\n{{ loop.index }}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role[:2] + eos_token }}\n{% endfor %}\n"
    "{% generation %}{{ messages[-1].content }}{% endgeneration %}{{ documents is none }}{{ bos_token | length }}",
    "first must speak": "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ dict(a=1) | tojson(sort_keys=true) }}"
    "{{ messages | map(attribute='role') | unique | join(',') }}",
}  # fmt: skip


def published():
    folder = os.environ.get("INFALIGN_CHAT_TEMPLATES")
    return sorted(pathlib.Path(folder).glob("*.jinja")) if folder else []


@pytest.fixture(scope="module")
def theirs():
    model = tokenizers.models.WordLevel({token: i for i, token in enumerate(TOKENS.values())}, unk_token="<unk>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model), **TOKENS)


def compare(theirs, source, dialogue, options):
    """Both write the same text, which is returned, or both refuse."""
    options = {**options}
    try:
        expected = theirs.apply_chat_template(dialogue, tokenize=False, chat_template=source, **options)
    except Exception:  # whatever a template makes Jinja raise
        with pytest.raises(ValueError):
            chat.apply_chat_template(chat.ChatTemplate(source, TOKENS), dialogue, **options)
        return None
    assert chat.apply_chat_template(chat.ChatTemplate(source, TOKENS), dialogue, **options) == expected
    return expected


@pytest.mark.parametrize("name", WRITTEN)
def test_written_templates(name, theirs):
    texts = [compare(theirs, WRITTEN[name], d, o) for d in DIALOGUES.values() for o in OPTIONS.values()]
    assert len(set(texts) - {None}) > 1


def test_a_template_that_refuses_refuses_here_too(theirs):
    assert compare(theirs, WRITTEN["namespace"], DIALOGUES["twice"], {}) is None
    with pytest.raises(ValueError, match="alternate"):
        chat.apply_chat_template(chat.ChatTemplate(WRITTEN["namespace"], TOKENS), DIALOGUES["twice"])


@pytest.mark.parametrize("dialogue", ["one", "long"])
@pytest.mark.parametrize("name", ["turns", "json"])
def test_a_template_in_a_folder_is_found_with_its_tokens(name, dialogue, theirs, tmp_path):
    theirs.chat_template = WRITTEN[name]
    theirs.save_pretrained(tmp_path)
    expected = theirs.apply_chat_template(DIALOGUES[dialogue], tokenize=False)
    found = chat.load_template(tmp_path)
    assert chat.apply_chat_template(found, DIALOGUES[dialogue], add_generation_prompt=False) == expected


@pytest.mark.parametrize("path", published(), ids=lambda path: path.stem)
def test_published_templates(path, theirs):
    source, written, refused = path.read_text(), {}, []
    for name, dialogue in DIALOGUES.items():
        for option, values in OPTIONS.items():
            text = compare(theirs, source, dialogue, values)
            if text is None:
                refused.append(f"{name} ({option})")
            else:
                written[name, option] = text
    print(json.dumps({"template": path.stem, "equal": len(written), "both refuse": refused}))
    if not written:
        pytest.skip("both refuse every dialogue here")
