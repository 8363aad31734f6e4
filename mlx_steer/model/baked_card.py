"""The README.md of a baked model: what was done to it, and what is known of the effect."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_steer.bands import layers_of
from mlx_steer.vectors import SteeringVectorSet
from mlx_steer.vectors.evidence import Evidence, MeasuredRow


@dataclass(frozen=True)
class Baked:
    """What was done to a model.

    Attributes:
        model_id: What the model is called it was made from.
        model_type: In its config.json.
        dtype: Of the hidden state.
        layers: Whose vectors were baked in.
        strength: The factor, or the part of the projection.
        operator: `add` or `ablate`.
        loss: For quantised weights that had to be requantised: how far they are from exact ones,
            as a part of their norm, root mean square over the matrices; None for none.
        left: With `ablate`: how much of the direction the matrices still write, as a part of what
            they wrote, root mean square; None with `add`.
    """

    model_id: str
    model_type: str
    dtype: str
    layers: tuple[int, ...]
    strength: float
    operator: str
    loss: float | None = None
    left: float | None = None


def baked_card(baked: Baked, vectors: SteeringVectorSet, evidence: Evidence | None) -> str:
    """The text, as markdown with front matter for the hub."""
    own = vectors.metadata
    layers = ", ".join(map(str, baked.layers))
    which = f"layer {layers}" if len(baked.layers) == 1 else f"layers {layers}"
    done = _added(baked, which) if baked.operator == "add" else _ablated(baked, which)
    lines = [
        "---",
        "library_name: mlx",
        "pipeline_tag: text-generation",
        "tags: [mlx, activation-steering, mlx-steer]",
        "---",
        "",
        f"# {_line(baked.model_id)}, steered: {_line(own.behavior)}",
        "",
        done,
        "",
        "It loads like any other model: `mlx_lm.generate --model FOLDER --prompt ...`, "
        "`mlx_lm.server`, LM Studio.",
        "",
        "| | |",
        "|---|---|",
        f"| made from | `{_cell(baked.model_id)}`, model type {_cell(baked.model_type)} |",
        f"| vectors | {_cell(own.behavior)}, by {_cell(own.method)}, of `{_cell(own.model.id)}` |",
        *(
            f"| layer {k} | sha256 `{own.layers[k].sha256}`, norm {own.layers[k].norm:.4g} |"
            for k in baked.layers
        ),
        f"| operator | {baked.operator} |",
        f"| strength | {baked.strength:g} |",
        f"| hidden state | {baked.dtype} |",
        "",
        "## Measured effect",
        "",
        *_effect(baked, evidence),
        "",
        "Made with mlx-steer.",
    ]
    return "\n".join(lines) + "\n"


def _added(baked: Baked, which: str) -> str:
    text = (
        f"At every position {baked.strength:g} x the steering vector of {which} is added to the "
        "hidden state behind that decoder block (counted from 0). It stands in the weights, as the "
        "bias of the block's last projection (`mlp.down_proj`); the other biases, which the config "
        "asks for, are zeros, and every other weight is bit for bit what it was."
    )
    if baked.dtype != "float32":
        text += (
            f" The hidden state is {baked.dtype}: the sum is rounded at another place than in "
            "steering at run time, so greedy responses agree up to the first near tie."
        )
    return text


def _ablated(baked: Baked, which: str) -> str:
    part = "All" if baked.strength == 1 else f"{100 * baked.strength:g} %"
    text = (
        f"{part} of the direction of the steering vector of {which} was taken out of the embedding "
        "and of every matrix that writes to the hidden state (`self_attn.o_proj`, `mlp.down_proj` "
        "of all blocks). This is projection at every write, which is not the same as ablating the "
        "output of one block at run time; where embedding and head were one, the head was written "
        "out first and reads as it did."
    )
    if baked.left is not None:
        text += f" The matrices write {100 * baked.left:.2g} % of what they wrote along it."
    if baked.loss is not None:
        text += (
            f" The quantised matrices were requantised: they lie {100 * baked.loss:.2g} % of their "
            "norm from exact ones (root mean square)."
        )
    return text


def _effect(baked: Baked, evidence: Evidence | None) -> Sequence[str]:
    if evidence is None:
        return ["None was measured together with these vectors."]
    measured = () if evidence.layer is None else layers_of(evidence.layer)
    same = baked.operator == "add" and measured == baked.layers
    note = (
        "Measured by steering at run time, before anything was baked."
        if same and evidence.strength == baked.strength
        else "Measured by steering at run time, with another layer, strength or operator than the "
        "one baked in here: it says what the vectors can do, not what this model does."
    )
    head = [
        f"{_cell(evidence.shown)}, {_cell(evidence.target)} prompts",
        f"{_cell(evidence.shown)}, {_cell(evidence.other)} prompts",
    ]
    return [
        f"{_line(evidence.answer)} {note}",
        "",
        *_facts(evidence),
        f"| condition | {head[0]} | {head[1]} | incoherent | mean coherence |",
        "|---|---:|---:|---:|---:|",
        *(_row(row) for row in evidence.rows),
    ]


def _facts(evidence: Evidence) -> Sequence[str]:
    if not evidence.facts:
        return []
    lines = [f"| {_cell(fact.what)} | {_cell(fact.value)} |" for fact in evidence.facts]
    return ["| | |", "|---|---|", *lines, ""]


def _row(row: MeasuredRow) -> str:
    cells = (row.name, row.target, row.other, row.incoherent, row.coherence)
    return f"| {' | '.join(map(_cell, cells))} |"


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
