"""Chat as each family means it, on templates written here that imitate the families' own.

Each says what it imitates. They render the same marks in the same places, without the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_steer.behaviors import PromptItem
from mlx_steer.judge.tool_restraint import judge_tool_restraint
from mlx_steer.model.chat import ChatFormat
from tests.helpers.tiny import EOS, SPECIAL, tiny_tokenizer

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
]

_TURNS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
_OFF = "enable_thinking is defined and not enable_thinking"

# Qwen3: thinks of its own accord; switched off by an empty thought in the prompt.
QWEN3 = _TURNS + "<|assistant|>{% if " + _OFF + " %}<think>\n\n</think>\n\n{% endif %}"
# Qwen3.5: the prompt opens the thought, or holds an empty one.
QWEN35 = _TURNS + (
    "<|assistant|>{% if " + _OFF + " %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
)
# DeepSeek-R1: the prompt always opens the thought; there is no switch.
R1 = _TURNS + "<|assistant|><think>\n"
# SmolLM3: the switch is a word in the system prompt, which also tells the date, and an empty
# thought; without a system message it writes its own.
SMOLLM3 = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{% set mode = '/think' if enable_thinking else '/no_think' %}"
    "<|system|>Today Date: {{ strftime_now('%d-%B-%Y') }} Reasoning Mode: {{ mode }} "
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
    "{% set messages = messages[1:] %}{% else %}You are SmolLM.{% endif %}<|end|>"
    + _TURNS
    + "<|assistant|>{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}"
)
# GLM-4.5: the switch is a word after the request and an empty thought; an answer has no end of its
# own, the next turn's mark is in the list of ends.
GLM = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
    "{% if m['role'] == 'user' and " + _OFF + " %}/nothink{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if "
    + _OFF
    + " %}{{ '\n' }}<think></think>{% endif %}"
    "{% endif %}"
)
# Gemma 4: a thought is a channel of its own, opened by several tokens.
GEMMA4 = _TURNS + (
    "<|assistant|>{% if not enable_thinking | default(false) %}"
    "<|channel>thought\n<channel|>{% endif %}"
)
# gpt-oss (Harmony): a system message with the date, the user's one as the developer's, tools in
# words of its own, and responses in channels.
HARMONY = (
    "<|start|>system<|message|>You are ChatGPT. Current date: {{ strftime_now('%Y-%m-%d') }}<|end|>"
    "{% if messages[0]['role'] == 'system' or tools %}<|start|>developer<|message|>"
    "{% if messages[0]['role'] == 'system' %}# Instructions\n{{ messages[0]['content'] }}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for tool in tools or [] %}type {{ tool.function.name }} = () => any;{% endfor %}<|end|>"
    "{% endif %}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}<|end|>"
    "{% else %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
HARMONY_TOKENS = ["<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>"]
# Mistral: tool calls begin with a special token; a turn ends with the end of text.
MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST]{{ m['content'] }}[/INST]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def chat_of(
    template: str,
    added: Sequence[str] = ("<think>", "</think>"),
    special: Sequence[str] = (),
    ends: Sequence[str] = (EOS,),
    thinking: bool = False,
) -> ChatFormat:
    tokenizer = tiny_tokenizer(template)
    tokenizer.add_tokens(list(added))
    tokenizer.add_tokens(list(special), special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(list(ends))
    return ChatFormat(TokenizerWrapper(tokenizer, eos_token_ids=ids), "tiny", thinking)


def harmony(thinking: bool = False) -> ChatFormat:
    return chat_of(HARMONY, (), HARMONY_TOKENS, ("<|return|>", "<|call|>"), thinking)


def rendered(chat: ChatFormat, ids: Sequence[int]) -> str:
    return str(chat.tokenizer.decode(list(ids)))


def texts(chat: ChatFormat, response: str, **prompt: Any) -> tuple[str, str]:
    """How a response is parted that the model would write in these tokens."""
    return chat.texts(chat.prompt_ids("Hi", **prompt), chat.response_ids(response))


# --- thinking and its off switch ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "off"),
    [
        (QWEN3, "<|assistant|><think>\n\n</think>\n\n"),
        (QWEN35, "<|assistant|><think>\n\n</think>\n\n"),
        (SMOLLM3, "<|assistant|><think>\n\n</think>\n"),
        (GLM, "/nothink<|assistant|>\n<think></think>"),
    ],
    ids=["Qwen3", "Qwen3.5", "SmolLM3", "GLM-4.5"],
)
def test_thinking_is_switched_off_as_the_family_does_it(template: str, off: str) -> None:
    for thinking in (False, True):
        chat = chat_of(template, thinking=thinking)
        ids = chat.prompt_ids("Hi")
        assert rendered(chat, ids).endswith(off) is not thinking
        assert chat.thinks(ids) is thinking


def test_a_model_without_a_switch_thinks_whatever_is_asked() -> None:
    chat = chat_of(R1)
    assert chat.thinks(chat.prompt_ids("Hi"))
    assert texts(chat, "Hm.\n</think>\n\nHello!") == ("Hm.", "Hello!")


def test_the_switch_of_smollm3_stays_beside_a_system_prompt() -> None:
    for thinking, word in ((False, "/no_think"), (True, "/think")):
        chat = chat_of(SMOLLM3, thinking=thinking)
        text = rendered(chat, chat.prompt_ids("Hi", "Be brief."))
        assert f"Reasoning Mode: {word} Be brief.<|end|><|user|>Hi" in text
    assert chat_of(SMOLLM3).default_system_prompt == "You are SmolLM."


def test_a_date_in_the_prompt_is_the_same_on_every_day() -> None:
    for template in (SMOLLM3, HARMONY):
        chat = chat_of(template, (), ["<think>", "</think>", *HARMONY_TOKENS])
        text = rendered(chat, chat.prompt_ids("Hi"))
        assert "01-January-2025" in text or "2025-01-01" in text


@pytest.mark.parametrize(
    ("template", "response", "parts"),
    [
        (QWEN3, "<think>\nLet me see.\n</think>\n\nHello!", ("Let me see.", "Hello!")),
        (QWEN35, "Let me see.\n</think>\n\nHello!", ("Let me see.", "Hello!")),
        (GLM, "\n<think>Let me see.</think>\nHello!", ("Let me see.", "Hello!")),
        (QWEN3, "<think>\nLet me s", ("Let me s", "")),
        (QWEN35, "Let me s", ("Let me s", "")),
        (QWEN3, "Hello!", ("", "Hello!")),
        (QWEN3, "<think>\na</think>b</think>c", ("a", "b</think>c")),
    ],
    ids=[
        *["Qwen3", "Qwen3.5", "GLM-4.5", "cut off", "opened and cut off", "no thought", "two ends"],
    ],
)
def test_the_text_of_a_response_is_what_follows_its_thinking(
    template: str, response: str, parts: tuple[str, str]
) -> None:
    assert texts(chat_of(template, thinking=True), response) == parts


def test_without_thinking_the_whole_response_is_its_text() -> None:
    assert texts(chat_of(QWEN35), "  Hello </think> there!") == ("", "  Hello </think> there!")
    assert texts(chat_of(QWEN3, added=()), "<think> is a tag.") == ("", "<think> is a tag.")


def test_thoughts_that_several_tokens_open_are_told_too() -> None:
    special = ["<|channel>", "<channel|>"]
    off = chat_of(GEMMA4, (), special)
    assert not off.thinks(off.prompt_ids("Hi"))
    assert off.thinking_end is not None and len(off.thinking_end) == 1
    on = chat_of(GEMMA4, (), special, thinking=True)
    assert on.thinks(on.prompt_ids("Hi"))
    assert texts(on, "<|channel>thought\nHm.<channel|>Hello!") == ("Hm.", "Hello!")


def test_an_answer_s_text_is_put_behind_a_thought_that_the_prompt_opens() -> None:
    chat = chat_of(QWEN35, thinking=True)
    assert rendered(chat, chat.answer_ids("Hi")).endswith("<think>\n</think>\n\n")
    for same in (chat_of(QWEN35), chat_of(QWEN3), chat_of(QWEN3, thinking=True)):
        assert same.answer_ids("Hi", "Be brief.") == same.prompt_ids("Hi", "Be brief.")


# --- gpt-oss's channels ---------------------------------------------------------------------------

ANALYSIS = "<|channel|>analysis<|message|>The user greets.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"


def test_gpt_oss_answers_at_once_in_its_final_channel_unless_it_is_to_think() -> None:
    off, on = harmony(), harmony(thinking=True)
    assert rendered(off, off.prompt_ids("Hi")).endswith(f"<|start|>assistant{FINAL}")
    assert not off.thinks(off.prompt_ids("Hi"))
    assert rendered(on, on.prompt_ids("Hi")).endswith("<|start|>assistant")
    assert on.thinks(on.prompt_ids("Hi"))
    assert rendered(on, on.answer_ids("Hi")).endswith(f"<|start|>assistant{FINAL}")
    assert on.answer_ids("Hi") == off.answer_ids("Hi") == off.prompt_ids("Hi")


@pytest.mark.parametrize(
    ("response", "parts"),
    [
        (f"{ANALYSIS}{FINAL}Hello!", ("The user greets.<|end|><|start|>assistant", "Hello!")),
        (f"{FINAL}Hello!", ("", "Hello!")),
        (f"{ANALYSIS}{FINAL}Hello!<|end|><|start|>assistant{FINAL}More", (None, "Hello!")),
        ("<|channel|>analysis<|message|>The user gr", ("The user gr", "")),
        (ANALYSIS, (None, "")),
    ],
    ids=["both", "final alone", "two finals", "cut off", "no answer"],
)
def test_only_gpt_oss_s_final_channel_is_its_answer(
    response: str, parts: tuple[str | None, str]
) -> None:
    thinking, answer = texts(harmony(thinking=True), response)
    assert answer == parts[1]
    if parts[0] is not None:
        plain = parts[0]
        for mark in (*HARMONY_TOKENS, "<|end|>"):
            plain = plain.replace(mark, "")
        assert thinking == plain


def test_the_answer_begins_with_the_last_token_of_gpt_oss_s_header() -> None:
    chat = harmony(thinking=True)
    assert chat.thinking_end == tuple(chat.response_ids(FINAL))
    assert len(chat.thinking_end) >= 3
    analysis = chat.response_ids("<|channel|>analysis<|message|>")
    assert tuple(analysis[-3:]) != chat.thinking_end[-3:], "the end of another channel's header"


def test_a_message_s_end_does_not_end_gpt_oss_s_response() -> None:
    # It ends the analysis as well; answers end with <|return|>, calls with <|call|>.
    chat = harmony(thinking=True)
    ends = {chat.tokenizer.convert_tokens_to_ids(t) for t in ("<|return|>", "<|call|>")}
    assert chat.stop_ids == ends | {SPECIAL.index(EOS)}


@pytest.mark.parametrize(
    "response",
    [
        "<|channel|>commentary to=functions.get_weather json<|message|>{}",
        f'{ANALYSIS}<|channel|>commentary to=functions.get_weather<|message|>{{"city": "Rome"}}',
        " to=functions.get_weather<|channel|>commentary json<|message|>{}",
    ],
    ids=["at once", "after thinking", "named in the role"],
)
def test_a_call_of_gpt_oss_is_told_from_an_answer(response: str) -> None:
    chat = harmony()
    ids = chat.prompt_ids("Rain?", None, TOOLS)
    assert "type get_weather" in rendered(chat, ids)
    assert rendered(chat, ids).endswith("<|start|>assistant"), "calls have a channel of their own"
    item = PromptItem("1", "Rain?", "target", "test", tools=tuple(TOOLS))
    _, call = chat.texts(ids, chat.response_ids(response))
    assert call.startswith('<tool_call>{"name": "get_weather", "arguments": {')
    assert judge_tool_restraint(item, call).verdict == "absent"
    _, answer = chat.texts(ids, chat.response_ids(f"{ANALYSIS}{FINAL}It rains."))
    assert judge_tool_restraint(item, answer).verdict == "shown"


# --- ends and tool calls --------------------------------------------------------------------------


def test_the_token_that_the_template_ends_an_answer_with_ends_a_response() -> None:
    # Some files name only the end of a text, so that a model would go on with the user's turn.
    chat = chat_of(_TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    assert chat.stop_ids == {SPECIAL.index(EOS), SPECIAL.index("<|end|>")}


@pytest.mark.parametrize("template", [GLM, MISTRAL], ids=["GLM", "Mistral"])
def test_no_other_token_is_taken_for_an_end(template: str) -> None:
    assert chat_of(template).stop_ids == {SPECIAL.index(EOS)}


def test_every_end_that_the_files_name_counts() -> None:
    chat = chat_of(GLM, ends=(EOS, "<|user|>", "<|system|>"))
    named = {SPECIAL.index(token) for token in (EOS, "<|user|>", "<|system|>")}
    assert chat.stop_ids == named


def test_special_tokens_of_tool_calls_are_shown_and_others_are_not() -> None:
    chat = chat_of(MISTRAL, (), ["[TOOL_CALLS]", "[INST]", "[/INST]"])
    said = '[TOOL_CALLS][{"name": "get_weather", "arguments": {}}][INST]'
    assert chat.decode(chat.response_ids(said)) == said.removesuffix("[INST]")
    item = PromptItem("1", "Rain?", "target", "test")
    assert judge_tool_restraint(item, chat.decode(chat.response_ids(said))).verdict == "absent"
    assert chat.decode(chat.response_ids("It rains.[INST]")) == "It rains."
