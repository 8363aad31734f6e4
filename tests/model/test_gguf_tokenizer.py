from pathlib import Path
from typing import Any

import mlx_lm
import pytest
from tokenizers import Tokenizer

from tests.helpers.gguf_files import converted


def pieces(folder: Path, text: str) -> list[str]:
    tokens: list[str] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).tokens
    return tokens


@pytest.mark.parametrize(
    ("rules", "text", "expected"),
    [
        ("smollm", "he he12", ["he", "Ġhe", "1", "2"]),
        ("gpt-2", "he he12", ["he", "Ġhe", "12"]),
        ("llama-bpe", "he he12", ["<|start|>", "he", "Ġhe", "12"]),
        ("smollm", "<|start|>he<tool>he<|end|>", ["<|start|>", "he", "<tool>", "he", "<|end|>"]),
        ("smollm", "é", ["Ã", "©"]),
    ],
    ids=["digits apart", "digits together", "llama 3 begins", "special tokens", "bytes"],
)
def test_byte_level_tokenizers_split_by_the_named_rules(
    tmp_path: Path, rules: str, text: str, expected: list[str]
) -> None:
    folder = converted(tmp_path, metadata={"tokenizer.ggml.pre": rules})
    assert pieces(folder, text) == expected


def test_control_tokens_are_special_and_user_defined_ones_are_not(tmp_path: Path) -> None:
    _, tokenizer = mlx_lm.load(str(converted(tmp_path)))
    ids = tokenizer.encode("<|start|>he<tool>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "he<tool>"


def test_the_chat_template_and_the_named_tokens_reach_the_loaded_tokenizer(tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.add_bos_token": True}
    _, tokenizer = mlx_lm.load(str(converted(tmp_path, metadata=changes)))
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|end|>")
    assert tokenizer.pad_token == "<|end|>"
    assert tokenizer.encode("he")[0] == 1
    text = tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False)
    assert text == "<|start|>he"
    assert tokenizer.encode(text, add_special_tokens=False).count(1) == 1


def sentencepiece_metadata() -> dict[str, Any]:
    words = ["▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab", "abc"]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    scores = {"ab": -2.0, "bc": -1.0, "▁a": -4.0, "▁ab": -3.0, "abc": -5.0}
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *words]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(words)],
        "tokenizer.ggml.scores": [scores.get(token, 0.0) for token in tokens],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab", ["▁ab"]),
        ("abc", ["▁a", "bc"]),  # "bc" scores highest and merges first
        ("b ab", ["▁", "b", "▁ab"]),
        ("é", ["▁", "<0xC3>", "<0xA9>"]),
    ],
)
def test_sentencepiece_tokenizers_merge_the_best_score_first(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    folder = converted(
        tmp_path, metadata=sentencepiece_metadata(), without=("tokenizer.ggml.merges",)
    )
    assert pieces(folder, text) == ["<s>", *expected]
    _, tokenizer = mlx_lm.load(str(folder))
    ids = tokenizer.encode(text)
    assert [*tokenizer.convert_ids_to_tokens(ids)] == ["<s>", *expected]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


# --- a real tokenizer ---

TEXTS = [
    *["Hello world", " leading", "trailing ", "two  spaces", "tabs\tand\nnew\n\nlines", "\r\n"],
    *["12345 67.89", "3.14159e-10", "don't can't I'll we've", "DON'T", "naïve café", "", "   "],
    *[
        "日本語のテキスト",
        "中文字符测试",
        "русский текст",
        "العربية",
        "हिन्दी",
        "👍🏽 emoji 🎉",
        "👨‍👩‍👧‍👦",
    ],
    *["def f(x):\n    return x**2\n", '{"a": [1, {"b": null}]}', "https://example.com/a?b=c&d=%20"],
    *["foo_bar-baz.qux", "CamelCase", "\u00a0nbsp\u00a0", "\u200bzero", "ﬁ ligature", "e\u0301"],
    *["Ω≈ç√∫", "½ ² ³ ①", "٣٤٥", "1st 2nd", "$100,000.00", "100%", "a1b2c3", "!!! ??? ..."],
    *["“quotes” ‘single’", "\x00\x01", "\ufeffbom", "long " * 50, "I cannot help with that."],
    *["<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>", "x<|im_end|>y <|im_start|> z"],
    *["<repo_name>a<file_sep>", "Sure, here is how", "\\n escaped", "'s 't 're", "—–-", "end.\n"],
    *["The quick brown fox jumps over the lazy dog.", "supercalifragilistic", "  a\n    b", "a"],
    *["\U0001f1eb\U0001f1f7", "ß ẞ", "İi ıI", "a\u0300\u0301", "\t\t", "\n \n", "x" * 300],
]


def test_text_survives_the_real_tokenizer(smollm: Path) -> None:
    tokenizer = Tokenizer.from_file(str(smollm / "tokenizer.json"))
    changed = [
        text
        for text in TEXTS
        if tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) != text
    ]
    assert len(TEXTS) >= 60
    assert changed == []


# Ids from transformers' own GGUF reader (5.23, with gguf 0.19) on the same file.
REFERENCE_IDS = {
    "<|im_start|>user\nIt's 2024<|im_end|>\n": [
        1,
        4093,
        198,
        1589,
        506,
        216,
        34,
        32,
        34,
        36,
        2,
        198,
    ],
    "naïve café, 中文": [3546, 46494, 37366, 28, 216, 28589, 29184],
    "  def f(x):\n\treturn x**2": [216, 753, 275, 24, 104, 727, 198, 197, 5406, 1792, 828, 34],
}


def test_the_real_tokenizer_gives_the_ids_of_another_reader(smollm: Path) -> None:
    tokenizer = Tokenizer.from_file(str(smollm / "tokenizer.json"))
    found = {text: tokenizer.encode(text).ids for text in REFERENCE_IDS}
    assert found == REFERENCE_IDS
