"""Rebuilds the tokenizer of a GGUF file from its metadata."""

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from mlx_steer.errors import ModelError
from mlx_steer.gguf_header import Header
from mlx_steer.model.gguf.architectures import Architecture

_CONTROL, _USER_DEFINED, _NORMAL = 3, 4, 1
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As Llama 3's, but each digit alone.
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_QWEN2_NAME = "qwen2"
_DIGIT_NAMES = ("smollm", "starcoder")
_PRE_NAMES = ("gpt-2", *_DIGIT_NAMES, *_LLAMA3_NAMES, _QWEN2_NAME)


def build_tokenizer(header: Header, architecture: Architecture) -> Tokenizer:
    """The tokenizer with its special tokens; raises ModelError for a kind that is not known."""
    if not {"tokenizer.ggml.model", "tokenizer.ggml.tokens"} <= header.metadata.keys():
        raise ModelError(f"{header.path} holds no tokenizer; use a complete GGUF file.")
    kind = header.get("tokenizer.ggml.model", str)
    tokens = header.get_list("tokenizer.ggml.tokens", str)
    types = header.get_list("tokenizer.ggml.token_type", int, [_NORMAL] * len(tokens))
    if architecture.ranks_by_place:
        tokens, types = _spelled_spaces(tokens, types)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if not tokens or len(vocabulary) != len(tokens) or len(types) != len(tokens):
        raise ModelError(f"{header.path}: its token list is damaged; download or copy it again.")
    if kind == "gpt2":
        tokenizer = _byte_level(header, vocabulary)
    elif kind == "llama":
        tokenizer = _sentencepiece(header, vocabulary, types, architecture.ranks_by_place)
    else:
        raise ModelError(
            f"{header.path} has a tokenizer of type '{kind}'; only 'gpt2' and 'llama' can be "
            "rebuilt, so use an MLX or Hugging Face folder of this model."
        )
    named = {header.token_id(role) for role in ("bos", "eos", "unknown", "padding")}
    for index, (token, type_) in enumerate(zip(tokens, types, strict=True)):
        if type_ == _CONTROL or (index in named and type_ != _USER_DEFINED):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif type_ == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    _add_sentence_tokens(header, tokenizer, kind)
    return tokenizer


def _byte_level(header: Header, vocabulary: dict[str, int]) -> Tokenizer:
    name = header.get("tokenizer.ggml.pre", str, "gpt-2")
    if name not in _PRE_NAMES:
        raise ModelError(
            f"{header.path} splits text by the rules of '{name}'; known are "
            f"{', '.join(_PRE_NAMES)}, so use an MLX or Hugging Face folder of this model."
        )
    pairs = [merge.partition(" ") for merge in header.get_list("tokenizer.ggml.merges", str)]
    merges = [(left, right) for left, _, right in pairs]
    tokenizer = _with_model(header, vocabulary, merges, ignore_merges=name in _LLAMA3_NAMES)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in _DIGIT_NAMES:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, plain])
    elif name == "gpt-2":
        tokenizer.pre_tokenizer = plain
    else:
        rules = _QWEN2_SPLIT if name == _QWEN2_NAME else _LLAMA3_SPLIT
        split = pre_tokenizers.Split(Regex(rules), behavior="isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    if name == _QWEN2_NAME:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _spelled_spaces(tokens: list[str], types: list[int]) -> tuple[list[str], list[int]]:
    """Gemma's runs of spaces as SentencePiece spells them, and as tokens like any other.

    llama.cpp's converter writes them as spaces, and as defined by the user.
    """
    spaces = [" " in token and not token.strip(" ") for token in tokens]
    spelled = ["▁" * len(t) if space else t for t, space in zip(tokens, spaces, strict=True)]
    return spelled, [_NORMAL if s else t for s, t in zip(spaces, types, strict=False)]


def _sentencepiece(
    header: Header, vocabulary: dict[str, int], types: list[int], by_place: bool
) -> Tokenizer:
    """Builds a BPE with byte fallback that merges as SentencePiece does, highest score first."""
    scores = header.get_list("tokenizer.ggml.scores", float)
    if len(scores) != len(vocabulary):
        raise ModelError(f"{header.path}: its token list is damaged; download or copy it again.")
    normal = {t: i for t, i in vocabulary.items() if types[i] == _NORMAL}
    merges = _merges_by_place(normal) if by_place else _merges_by_score(normal, scores)
    unknown = header.token_id("unknown")
    tokenizer = _with_model(
        header,
        vocabulary,
        merges,
        unk_token=None if unknown is None else list(vocabulary)[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    prefix = header.get("tokenizer.ggml.add_space_prefix", bool, True)
    spaces = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁")] * prefix + spaces)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefix)
    return tokenizer


def _splits(token: str, known: Mapping[str, int]) -> list[tuple[str, str]]:
    pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
    return [(left, right) for left, right in pairs if left in known and right in known]


def _merges_by_score(normal: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    ranked = [
        (-scores[index], normal[left], normal[right], (left, right))
        for token, index in normal.items()
        for left, right in _splits(token, normal)
    ]
    return [pair for *_, pair in sorted(ranked)]


def _merges_by_place(normal: Mapping[str, int]) -> list[tuple[str, str]]:
    """Gemma's scores do not follow the order of its merges; that of its tokens does."""
    by_place = sorted(normal, key=normal.__getitem__)
    return [pair for token in by_place for pair in reversed(_splits(token, normal))]


def _with_model(
    header: Header,
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    **options: bool | str | None,
) -> Tokenizer:
    try:
        return Tokenizer(BPE(vocabulary, merges, **options))
    except Exception as error:  # tokenizers raises nothing more precise
        raise ModelError(
            f"{header.path}: its tokenizer is damaged ({error}); download or copy it again."
        ) from error


def _add_sentence_tokens(header: Header, tokenizer: Tokenizer, kind: str) -> None:
    """Lets plain encoding add the begin and end tokens that the file asks for."""
    llama3 = header.metadata.get("tokenizer.ggml.pre") in _LLAMA3_NAMES
    begin, end = header.token_id("bos"), header.token_id("eos")
    if not header.get("tokenizer.ggml.add_bos_token", bool, kind == "llama" or llama3):
        begin = None
    if not header.get("tokenizer.ggml.add_eos_token", bool, False):
        end = None
    before, after = (
        [] if index is None else [(tokenizer.id_to_token(index), index)] for index in (begin, end)
    )
    if before or after:
        tokenizer.post_processor = TemplateProcessing(
            single=[*(token for token, _ in before), "$A", *(token for token, _ in after)],
            special_tokens=list(dict.fromkeys(before + after)),
        )


def tokenizer_config(header: Header, architecture: Architecture) -> dict[str, object]:
    """The tokenizer_config.json: the named tokens and the chat template."""
    tokens = header.get("tokenizer.ggml.tokens", list)
    config: dict[str, object] = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": header.get(f"{architecture.name}.context_length", int),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        index = header.token_id(role)
        if index is not None:
            config[f"{key}_token"] = tokens[index]
    if "tokenizer.chat_template" in header.metadata:
        config["chat_template"] = header.get("tokenizer.chat_template", str)
    return config
