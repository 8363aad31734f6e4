import json
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_steer.errors import ModelError
from mlx_steer.model.chat import ChatFormat
from tests.helpers.tiny import BOS, CHAT_TEMPLATE, SPECIAL, tiny_chat, tiny_tokenizer

RAISES = (  # as Gemma's does
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>"
)
DROPS = (  # as some do that know only two roles
    "{{ bos_token }}{% for m in messages %}{% if m['role'] != 'system' %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}<|assistant|>"
)
TRIMS = (  # as Llama's does
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>"
    "{% endfor %}<|assistant|>"
)
THINKS = (  # as Qwen3's does
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>"
    "{% endfor %}<|assistant|>{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
WITH_TOOLS = (
    "{{ bos_token }}{% if tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>"
)
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "send_mail", "parameters": {"type": "object"}}},
]


def rendered(chat: ChatFormat, ids: list[int]) -> str:
    return str(chat.tokenizer.decode(ids))


def prompt(chat: ChatFormat, *args: Any) -> str:
    return rendered(chat, chat.prompt_ids(*args))


def test_a_prompt_is_the_rendered_template_with_the_generation_prompt() -> None:
    chat = tiny_chat()
    assert prompt(chat, "Hi there") == "<bos><|user|>Hi there<|end|><|assistant|>"
    assert (
        prompt(chat, "Hi", "Be brief.")
        == "<bos><|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>"
    )


def test_there_is_no_bos_beyond_the_templates_own() -> None:
    chat, bos = tiny_chat(), SPECIAL.index(BOS)
    assert chat.tokenizer.encode("<bos>Hi")[:2] == [bos, bos], "by default there would be two"
    assert chat.prompt_ids("Hi").count(bos) == 1
    without = tiny_chat(CHAT_TEMPLATE.replace("{{ bos_token }}", ""))
    assert without.prompt_ids("Hi").count(bos) == 0
    assert bos not in chat.response_ids("Sure, here it is.")


def test_a_prompt_and_its_response_are_the_conversations_ids() -> None:
    chat = tiny_chat()
    whole = chat.tokenizer.encode(
        "<bos><|user|>Hi<|end|><|assistant|>I cannot help", add_special_tokens=False
    )
    assert chat.prompt_ids("Hi") + chat.response_ids("I cannot help") == whole


@pytest.mark.parametrize("template", [RAISES, DROPS], ids=["raises", "drops"])
def test_a_system_prompt_is_folded_into_the_user_turn_where_the_template_has_no_role_for_it(
    template: str,
) -> None:
    chat = tiny_chat(template)
    assert prompt(chat, "Hi", "Be brief.") == "<bos><|user|>Be brief.\n\nHi<|end|><|assistant|>"
    assert prompt(chat, "Hi") == "<bos><|user|>Hi<|end|><|assistant|>"
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    assert rendered(chat, chat.conversation_ids(talk)) == (
        "<bos><|user|>Be brief.\n\nHi<|end|>"
        "<|assistant|>Hello<|end|><|user|>Bye<|end|><|assistant|>"
    )


def test_a_template_that_trims_the_system_prompt_has_not_dropped_it() -> None:
    text = prompt(tiny_chat(TRIMS), "Hi", "  Be brief.\n")
    assert text == "<bos><|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>"


def test_a_dropped_system_prompt_is_noticed_even_if_the_user_says_the_same() -> None:
    text = prompt(tiny_chat(DROPS), "What does 'Be brief.' mean?", "Be brief.")
    assert text.count("Be brief.") == 2


def test_an_empty_system_prompt_is_none() -> None:
    chat = tiny_chat()
    assert chat.prompt_ids("Hi", "") == chat.prompt_ids("Hi", None) == chat.prompt_ids("Hi")


def test_thinking_is_off_unless_asked_for() -> None:
    assert prompt(tiny_chat(THINKS), "Hi").endswith("<|assistant|><think>\n\n</think>\n\n")
    assert prompt(tiny_chat(THINKS, thinking=True), "Hi").endswith("<|assistant|>")


def test_the_end_of_thinking_is_the_token_that_the_vocabulary_has_for_it() -> None:
    assert tiny_chat().thinking_end is None
    assert not tiny_chat(thinking=True).thinks([5, 6])
    tokenizer = tiny_tokenizer(THINKS)
    tokenizer.add_tokens(["<think>", "</think>"])
    for thinking in (False, True):
        chat = ChatFormat(TokenizerWrapper(tokenizer), "tiny", thinking)
        assert chat.thinking_end == (tokenizer.convert_tokens_to_ids("</think>"),)
        assert chat.thinks(chat.prompt_ids("Hi")) is thinking
        # Some templates open the thinking themselves, whatever they are asked.
        assert chat.thinks([*chat.prompt_ids("Hi"), *chat.response_ids("<think>")])


def test_tools_are_shown_by_templates_that_can() -> None:
    text = prompt(tiny_chat(WITH_TOOLS), "Rain?", "Be brief.", TOOLS)
    shown = text[text.index("[TOOLS]") + 7 : text.index("[/TOOLS]")]
    assert json.loads(shown) == TOOLS
    assert "<tool_call>" not in text
    assert "[TOOLS]" not in prompt(tiny_chat(WITH_TOOLS), "Rain?")


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, RAISES, DROPS], ids=["system", "no", "drops"])
def test_tools_are_written_into_the_system_prompt_where_the_template_does_not_show_them(
    template: str, system: str | None
) -> None:
    text = prompt(tiny_chat(template), "Rain?", system, TOOLS)
    tools = text[text.index("<tools>\n") + 8 : text.index("\n</tools>")]
    assert [json.loads(line) for line in tools.split("\n")] == TOOLS
    assert '<tool_call>{"name": NAME, "arguments": {...}}</tool_call>' in text
    role = "system" if template is CHAT_TEMPLATE else "user"
    start = f"<bos><|{role}|>" + (f"{system}\n\n" if system else "")
    assert text.startswith(start + "You may call these tools.")
    assert text.endswith("Rain?<|end|><|assistant|>")
    assert text.count("<|user|>") == 1


@pytest.mark.parametrize("asked", ["Use get_weather.", "Use get_weather, then send_mail."])
def test_tools_are_not_taken_for_shown_because_the_prompt_names_them(asked: str) -> None:
    text = prompt(tiny_chat(), asked, None, TOOLS)
    tools = text[text.index("<tools>\n") + 8 : text.index("\n</tools>")]
    assert [json.loads(line) for line in tools.split("\n")] == TOOLS


def test_tools_that_the_template_shows_are_not_shown_twice_if_the_prompt_names_one() -> None:
    text = prompt(tiny_chat(WITH_TOOLS), "Use get_weather.", None, TOOLS)
    assert "[TOOLS]" in text and "<tool_call>" not in text
    assert text.count("send_mail") == 1


def test_a_template_that_shows_only_the_first_tool_has_not_shown_them() -> None:
    text = prompt(tiny_chat(WITH_TOOLS.replace("tools | tojson", "tools[0]")), "Rain?", None, TOOLS)
    assert "[TOOLS]" not in text and "send_mail" in text


def test_a_model_without_a_chat_template_is_refused() -> None:
    with pytest.raises(ModelError, match=r"tiny has no chat template.*instruction-tuned"):
        tiny_chat(None)


def test_roles_that_the_template_cannot_render_are_named() -> None:
    strict = (
        "{% for m in messages %}{% if m['role'] != 'user' %}"
        "{{ raise_exception('Only user turns, please') }}{% endif %}{% endfor %}"
    )
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    with pytest.raises(ModelError, match=r"\['user', 'assistant'\]: Only user turns, please"):
        tiny_chat(strict).conversation_ids(talk)


def test_a_broken_template_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="chat template of tiny cannot render"):
        tiny_chat("{% for m in messages %}{{ m['content'] }}").prompt_ids("Hi")


def test_decoding_leaves_special_tokens_out() -> None:
    chat = tiny_chat()
    ids = [*chat.response_ids("Sure, café ☕"), SPECIAL.index("<|end|>"), SPECIAL.index("<eos>")]
    assert chat.decode(ids) == "Sure, café ☕"
    assert chat.decode([]) == ""


def test_every_end_token_stops_a_response() -> None:
    chat = tiny_chat(stops=[40])
    assert chat.stop_ids == {SPECIAL.index("<eos>"), SPECIAL.index("<|end|>"), 40}


def test_the_hash_is_of_the_template() -> None:
    assert tiny_chat().sha256 == tiny_chat().sha256 != tiny_chat(RAISES).sha256
    assert len(tiny_chat().sha256) == 64
