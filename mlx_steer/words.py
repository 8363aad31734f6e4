"""The vocabulary as types, each word defined once; imports nothing of the package."""

from typing import Literal

Verdict = Literal["shown", "absent", "incoherent"]
"""What a response is; a behavior gives these words of its own (refused, complied)."""

PromptSet = Literal["target", "other", "borderline"]
"""What a prompt is for: to show the behavior, not to, or only to sound as if it should."""

Split = Literal["select", "test", "gate", "extract", "facts"]
"""What a prompt serves: the choice, the test, the fitting of a gate, the writing of contrast pairs
by the model itself, or the price in facts."""

Scope = Literal["all", "generated", "prompt", "thinking", "answer"]
"""The positions a vector acts on (see `conditions.Intervention`)."""

Stage = Literal["prompt", "thinking", "answer"]
"""The parts of a row that scopes tell apart."""

Operator = Literal["add", "ablate", "clamp"]
"""How a vector acts on the hidden state."""

GateJoin = Literal["any", "all"]
"""Whether one open gate of several suffices."""

TokenPosition = Literal["last", "mean"]
"""Where a response's hidden state is read: at its last token, or the mean over all of them."""

GateMethod = Literal["mean_difference", "whitened_mean_difference", "logistic_regression"]
"""How a gate's direction is made of hidden states."""

Method = Literal[GateMethod, "pca"]
"""How a steering vector is made of hidden states (see extraction/directions.py)."""

Kind = Literal[
    "base",
    "prompt",
    "steering",
    "gated",
    "prompt+steering",
    "prompt+gated",
    "random",
    "negated",
    "shuffled",
    "",
]
"""The role a condition plays in an experiment; empty outside of one."""

Dtype = Literal["float32", "bfloat16", "float16"]
"""The dtypes a hidden state can have."""

DtypeChoice = Literal["auto", Dtype]
"""The dtype a user asks for; `auto` is the weights' own."""

Shard = Literal["tensor"]
"""How a model is spread over ranks: each holds a part of every block's matrices."""

Strategy = Literal["grid", "race"]
"""How a layer and a strength are searched for."""

Extent = Literal["full", "answer"]
"""How much a comparison compares: all strengths and combinations, or what its answer needs."""

FinishReason = Literal["stop", "length"]
"""Why a response ended: the model ended it, or it has as many tokens as were asked for."""
