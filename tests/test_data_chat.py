"""Chat templates: what the families' own templates use, each against text written by hand."""

import datetime
import json

import pytest

from infalign_jax.data import chat

pytest.importorskip("jinja2")

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": " 2 < 3? "},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "Sure?"},
]


def write(source, messages=MESSAGES, tokens=None, **options):
    return chat.apply_chat_template(chat.ChatTemplate(source, tokens or {}), messages, **options)


def test_turns_with_special_tokens_and_generation_prompt():
    source = """{{ bos_token }}{% for message in messages %}
    {% if message['role'] == 'system' %}
        {% continue %}
    {% endif %}
{{ '<|' + message.role + '|>' + message.content | trim + eos_token }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    body = "<s><|user|>2 < 3?</s>\n<|assistant|>Yes</s>\n<|user|>Sure?</s>\n"
    assert write(source, tokens=tokens) == body + "<|assistant|>"
    assert write(source, tokens=tokens, add_generation_prompt=False) == body


def test_namespace_break_and_undefined_tools():
    source = (
        "{%- set ns = namespace(found='none') -%}{%- for m in messages -%}"
        "{%- if m.role == 'user' -%}{%- set ns.found = m.content -%}{%- break -%}{%- endif -%}{%- endfor -%}"
        "{{ ns.found }}{% if tools is not none %}tools{% endif %}{% if thinking is defined %}!{% endif %}"
    )
    assert write(source) == " 2 < 3? "
    assert write(source, thinking=True) == " 2 < 3? !"


def test_alternation_is_enforced_by_the_template_itself():
    source = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    assert write(source, MESSAGES[1:]) == " 2 < 3? YesSure?"
    with pytest.raises(ValueError, match="cannot write these messages: roles must alternate"):
        write(source)


def test_date_and_json():
    now = datetime.datetime(2024, 7, 26)
    assert write("{{ strftime_now('%d %b %Y') }}", now=now) == "26 Jul 2024"
    assert write("{{ tools | tojson }}", tools=[{"a": "<é>"}]) == '[{"a": "<é>"}]'
    assert write("{{ tools | tojson(indent=2) }}", tools={"a": 1}) == '{\n  "a": 1\n}'


def test_generation_blocks_pass_their_text_on():
    source = "{% for m in messages %}{% generation %}{{ m.role[0] }}{% endgeneration %}{% endfor %}"
    assert write(source) == "suau"


def test_templates_are_sandboxed():
    with pytest.raises(ValueError, match="unsafe"):
        write("{{ ''.__class__.__mro__ }}")
    with pytest.raises(ValueError, match="unsafe"):
        write("{% set x = messages.append(1) %}")
    assert len(MESSAGES) == 4


def test_a_broken_template_is_named(tmp_path):
    (tmp_path / "bad.jinja").write_text("a\n{% if %}")
    with pytest.raises(ValueError, match="does not compile: line 2"):
        chat.load_template(tmp_path / "bad.jinja")


def test_templates_are_found_in_folders(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no chat template"):
        chat.load_template(tmp_path)
    config = {"chat_template": "C{{ bos_token }}", "bos_token": {"content": "<b>"}, "eos_token": "<e>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    expected = chat.ChatTemplate("C{{ bos_token }}", {"bos_token": "<b>", "eos_token": "<e>"})
    assert chat.load_template(tmp_path) == chat.load_template(tmp_path / "tokenizer_config.json") == expected
    assert chat.renderer(tmp_path).prompt(MESSAGES) == "C<b>"
    (tmp_path / "chat_template.jinja").write_text("J{{ eos_token }}")
    assert chat.load_template(tmp_path).source == "J{{ eos_token }}"
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert chat.load_template(tmp_path / "named").source == "D"
    with pytest.raises(ValueError, match="does not exist"):
        chat.load_template(tmp_path / "nowhere")


def test_plain_turns():
    plain = chat.renderer("")
    expected = "\n\nSystem: Be kind.\n\nHuman:  2 < 3? \n\nAssistant: Yes\n\nHuman: Sure?\n\nAssistant:"
    assert plain.prompt(MESSAGES) == expected and plain.response("Yes") == " Yes"
    with pytest.raises(ValueError, match="role is 'tool'"):
        plain.prompt([{"role": "tool", "content": "x"}])
