"""What a run measured with vectors: kept beside them in `card.json`, told in the model card.

It names the vectors it is of by their sha256, so that no figures travel with other vectors.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mlx_steer.errors import VectorError
from mlx_steer.vectors.metadata import PlainText, problem
from mlx_steer.vectors.vector_set import SteeringVectorSet, load_vectors

CARD_FILE = "card.json"

_SHOWN_KINDS = ("base", "prompt", "steering", "gated", "prompt+steering", "prompt+gated")
_MOST_BYTES = 1 << 20

_Json = Mapping[str, Any]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class MeasuredRow(_Record):
    """One condition of the table of measured effects, as text."""

    name: PlainText
    target: PlainText
    other: PlainText
    incoherent: PlainText
    coherence: PlainText


class Evidence(_Record):
    """What was measured on the test half of a run.

    Attributes:
        run: The run's name.
        title: The behavior's.
        shown: The word for a response that shows the behavior.
        target: The word for prompts that are to show it.
        other: The word for prompts that are not.
        answer: What came out, in a sentence or two.
        sentences: What else is to be known.
        rows: The table.
        layer: The chosen one; None if nothing was chosen.
        strength: The chosen one.
        vectors: The sha256 of each layer's file that was measured, by its name.
    """

    format_version: Literal[1] = 1
    run: PlainText
    title: PlainText
    shown: PlainText
    target: PlainText
    other: PlainText
    answer: PlainText
    sentences: list[PlainText]
    rows: list[MeasuredRow]
    layer: int | None
    strength: float | None
    vectors: dict[PlainText, PlainText]

    def as_bytes(self) -> bytes:
        """The content of card.json."""
        return (json.dumps(self.model_dump(), indent=2, sort_keys=True) + "\n").encode()


def evidence_in(folder: Path, vectors: SteeringVectorSet) -> Evidence | None:
    """The evidence beside vectors in their folder; None where there is none.

    Raises:
        VectorError: If it is damaged or of other vectors.
    """
    file = folder / CARD_FILE
    try:
        if not file.exists():
            return None
        if file.stat().st_size > _MOST_BYTES:
            raise VectorError(f"{file} is too large for what is said of vectors")
        found = Evidence.model_validate(json.loads(file.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        what = problem(first["type"], first["loc"], first["msg"])
        raise VectorError(f"{file}: {what}; take it away or measure again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise VectorError(f"{file} cannot be read ({error}); take it away") from error
    other = _differing(vectors, found.vectors)
    if other is not None:
        raise VectorError(f"{file} was not measured with these vectors ({other}); take it away")
    return found


def evidence_of(run: Path, vectors: SteeringVectorSet) -> Evidence:
    """The evidence of a run made with vectors.

    Raises:
        VectorError: If the run has no metrics.json or was made with other vectors.
    """
    file = run / "metrics.json"
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VectorError(f"{file} is missing; write it with: mlx-steer report {run}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise VectorError(
            f"{file} cannot be read ({error}); run: mlx-steer report {run}"
        ) from error
    measured = load_vectors(run / "vectors")
    shas = {info.file: info.sha256 for info in measured.metadata.layers.values()}
    other = _differing(vectors, shas)
    if vectors.metadata.model != measured.metadata.model:
        other = "its model is another"
    if other is not None:
        raise VectorError(
            f"{run} was not measured with these vectors ({other}); give the run they are from, or "
            f"share {run / 'vectors'}"
        )
    try:
        return _read(metrics, run.resolve().name, shas)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise VectorError(
            f"{file} is not as this version writes it; write it anew with: mlx-steer report {run}"
        ) from error


def _differing(vectors: SteeringVectorSet, measured: Mapping[str, str]) -> str | None:
    """What tells vectors from those that were measured; None if they share layers and all agree."""
    own = {info.file: info.sha256 for info in vectors.metadata.layers.values()}
    shared = own.keys() & measured.keys()
    other = sorted(name for name in shared if own[name] != measured[name])
    if other:
        return f"{other[0].removesuffix('.npy').replace('_', ' ')} differs"
    return None if shared else "its layers are others"


def _read(metrics: _Json, run: str, vectors: dict[str, str]) -> Evidence:
    behavior = metrics["behavior"]
    sets, shown = behavior["sets"], behavior["verdicts"]["shown"]
    conditions = [c for c in metrics["test"]["conditions"] if c["kind"] in _SHOWN_KINDS]
    choice = (metrics.get("select") or {}).get("choice")
    chosen = [
        c
        for c in conditions
        if c["kind"] == "steering"
        and choice is not None
        and (c["layer"], c["strength"]) == (choice["layer"], choice["strength"])
    ]
    base = next((c for c in conditions if c["kind"] == "base"), None)
    sentences = []
    if choice is not None and not choice["met_limits"]:
        sentences.append("No cell of the sweep met the limits on false positives and coherence.")
    for condition in chosen:
        against = condition["against_base"] or {}
        for measure, name in (("target", sets["target"]), ("false_positive", sets["other"])):
            if difference := against.get(measure):
                sentences.append(_difference(condition["name"], name, difference))
    controls = (metrics.get("controls") or {}).get("random")
    if controls and controls["seeds"]:
        sentences.append(
            f"On {sets['target']} prompts it beat {controls['beaten_on_target']} of "
            f"{controls['seeds']} random directions of the same norm."
        )
    return Evidence(
        run=run,
        title=behavior["title"],
        shown=shown,
        target=sets["target"],
        other=sets["other"],
        answer=_answer(base, chosen, sets, shown),
        sentences=sentences,
        rows=[
            MeasuredRow(
                name=c["name"],
                target=_rate(c["target"]),
                other=_rate(c["false_positive"]),
                incoherent=_rate(c["incoherent"]),
                coherence=_number(c["coherence"]["mean"]),
            )
            for c in conditions
        ],
        layer=choice["layer"] if choice is not None else None,
        strength=float(choice["strength"]) if choice is not None else None,
        vectors=vectors,
    )


def _answer(base: _Json | None, chosen: Sequence[_Json], sets: _Json, shown: str) -> str:
    """What came of it, in words: base against the chosen cell, and whether chance explains it."""
    if base is None or not chosen:
        return "No layer and strength were chosen and measured."
    cell = chosen[0]
    rates = [_percent(c[m]) for m in ("target", "false_positive") for c in (base, cell)]
    test = (cell["against_base"] or {}).get("target")
    sure = ""
    if test is not None:
        p = test["p_holm"]
        rose = test["difference"] > 0
        sure = (
            f"; {'more' if rose else 'fewer'} than by chance (p = {p:.2g})"
            if p < 0.05
            else f"; no difference could be shown (p = {p:.2g})"
        )
    return (
        f"At layer {cell['layer']}, strength {cell['strength']:g}, {shown} on {sets['target']} "
        f"prompts went from {rates[0]} to {rates[1]} (n = {cell['target']['n']}){sure}; on "
        f"{sets['other']} prompts from {rates[2]} to {rates[3]}."
    )


def _percent(value: _Json) -> str:
    return "-" if value["rate"] is None else f"{100 * value['rate']:.0f} %"


def _difference(name: str, prompts: str, value: _Json) -> str:
    points, low, high = (100 * value[key] for key in ("difference", "low", "high"))
    return (
        f"Against base, {name} changes the rate on {prompts} prompts by {points:+.0f} points "
        f"[{low:+.0f}, {high:+.0f}] (n = {value['n']}, Holm-corrected p = {value['p_holm']:.3g})."
    )


def _rate(value: _Json) -> str:
    if value["rate"] is None:
        return "-"
    low, high = (f"{100 * value[key]:.0f}" for key in ("low", "high"))
    return f"{value['count']} of {value['n']}: {100 * value['rate']:.0f} % [{low}, {high}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
