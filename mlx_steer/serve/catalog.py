"""What a server offers: its model, vectors by name, and presets with the evidence for them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue, ValidationError

from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.errors import SteerError, VectorError
from mlx_steer.serve.problems import Problem, invalid
from mlx_steer.serve.protocol import MOST_VECTORS, Steer
from mlx_steer.vectors import SteeringVectorSet, load_vectors

EVIDENCE_FILE = "card.json"
MOST_PRESETS = 200

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Without evidence, relative doses beyond this are called unmeasured and high.
_USUAL_DOSE = 1.0


@dataclass(frozen=True)
class Evidence:
    """What a run measured with vectors, as far as a server needs it.

    Attributes:
        answer: The run's answer, as in its metrics.json.
        doses: Relative doses that were measured, from the smallest to the largest.
    """

    answer: Mapping[str, JsonValue] = field(default_factory=dict)
    doses: tuple[float, ...] = ()

    @staticmethod
    def of(folder: Path) -> Evidence | None:
        """The evidence kept in a vectors folder; None if there is none that can be read."""
        try:
            card = json.loads((folder / EVIDENCE_FILE).read_text(encoding="utf-8"))
            answer = card["answer"]
            doses = sorted(float(dose) for dose in card.get("doses", ()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return Evidence(answer, tuple(doses)) if isinstance(answer, dict) else None


@dataclass(frozen=True)
class Preset:
    """A named condition: what steers, and what is known of it."""

    name: str
    steering: tuple[Steer, ...]
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Resolved:
    """A request's condition, and what its response says of it."""

    condition: Condition
    steering: tuple[Steer, ...]
    preset: str | None = None
    warnings: tuple[str, ...] = ()

    def echo(self) -> dict[str, JsonValue]:
        """The condition as responses repeat it."""
        return {
            "preset": self.preset,
            "steering": [s.model_dump(exclude_none=True) for s in self.steering],
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Offered:
    """What of a model decides which vectors fit it: its id, width and number of layers."""

    model: str
    hidden_size: int
    num_layers: int


class Catalog:
    """Vectors and presets by name; presets may be added while the server runs.

    Args:
        offered: The model that is served.
        vectors: By name: sets that fit it.
        evidence: By vectors' name, where there is some.
    """

    def __init__(
        self,
        offered: Offered,
        vectors: Mapping[str, SteeringVectorSet],
        evidence: Mapping[str, Evidence] | None = None,
    ) -> None:
        """See the class."""
        self.offered = offered
        self.vectors = dict(vectors)
        self.evidence = dict(evidence or {})
        self.presets: dict[str, Preset] = {}
        self._lock = threading.Lock()

    @staticmethod
    def load(
        offered: Offered, named: Iterable[tuple[str | None, Path]]
    ) -> tuple[Catalog, list[str]]:
        """Read vectors folders that must fit the model.

        Args:
            offered: The model.
            named: (name, folder); without a name the metadata's behavior is taken.

        Returns:
            The catalog, and what a person should know.

        Raises:
            VectorError: If a folder is no vectors folder, does not fit, or a name stands twice.
        """
        vectors: dict[str, SteeringVectorSet] = {}
        evidence: dict[str, Evidence] = {}
        notes: list[str] = []
        for given, folder in named:
            found = load_vectors(folder)
            name = given or found.metadata.behavior
            check_name(name, "vectors")
            if name in vectors:
                raise VectorError(f"two vectors are called {name!r}; name them: NAME=DIR")
            notes += found.check_fits(offered.hidden_size, offered.num_layers, offered.model)
            vectors[name] = found
            if known := Evidence.of(folder):
                evidence[name] = known
        return Catalog(offered, vectors, evidence), notes

    def add_preset(self, name: str, steering: tuple[Steer, ...]) -> Preset:
        """Offer a condition under a name; an earlier one of that name is replaced.

        Raises:
            Problem: If the name cannot be one, or the steering does not fit the vectors.
        """
        try:
            check_name(name, "preset")
        except VectorError as error:
            raise invalid(str(error), "name") from None
        self._condition(steering)
        evidence = self.evidence.get(steering[0].vector) if len(steering) == 1 else None
        preset = Preset(name, steering, evidence)
        with self._lock:
            if name not in self.presets and len(self.presets) >= MOST_PRESETS:
                raise Problem(
                    409, f"there are {MOST_PRESETS} presets already; reuse a name", "name"
                )
            self.presets[name] = preset
        return preset

    def resolve(
        self, model: str, preset: str | None, steering: tuple[Steer, ...] | None
    ) -> Resolved:
        """The condition of a request.

        Args:
            model: The request's model: the base model's id, any other text without "+" (clients
                insist on one), or `model+preset`.
            preset: A preset's name, instead.
            steering: What steers, instead.

        Raises:
            Problem: If a name is unknown, or two of these are given.
        """
        named = model.rpartition("+")[2] if "+" in model else None
        if sum(given is not None for given in (named, preset, steering)) > 1:
            raise invalid(
                "say how to steer once: by the model's name, by preset, or by steering", "steering"
            )
        wanted = preset if named is None else named
        if wanted is None:
            chosen: tuple[Steer, ...] = steering or ()
        else:
            found = self.presets.get(wanted)
            if found is None:
                raise Problem(
                    404,
                    f"there is no preset {wanted[:60]!r}; there are: "
                    f"{', '.join(sorted(self.presets)) or 'none'}",
                    "model" if named else "preset",
                    "model_not_found",
                )
            chosen = found.steering
        condition, warnings = self._condition(chosen)
        return Resolved(condition, chosen, wanted, tuple(warnings))

    def _condition(self, steering: tuple[Steer, ...]) -> tuple[Condition, list[str]]:
        acts: list[Intervention] = []
        gates: dict[tuple[str, str], Gate] = {}
        warnings: list[str] = []
        if len(steering) > MOST_VECTORS:
            raise invalid(f"at most {MOST_VECTORS} vectors act at once", "steering")
        for place, item in enumerate(steering):
            where = f"steering.{place}"
            act = self._intervention(item, where)
            acts.append(act)
            if item.gate is not None:
                gates[item.vector, item.gate] = self._gate(item.vector, item.gate, where)
            if warning := self._too_much(item.vector, act):
                warnings.append(warning)
        return Condition("request", None, tuple(acts), tuple(gates.values())), warnings

    def _intervention(self, item: Steer, where: str) -> Intervention:
        vectors = self.vectors.get(item.vector)
        if vectors is None:
            raise invalid(
                f"there are no vectors {item.vector[:60]!r}; there are: "
                f"{', '.join(sorted(self.vectors)) or 'none'}",
                f"{where}.vector",
            )
        layers = list(vectors)
        if item.layer is None and len(layers) > 1:
            raise invalid(
                f"{item.vector} has layers {', '.join(map(str, layers))}; say which: layer",
                f"{where}.layer",
            )
        try:
            vector = vectors[layers[0] if item.layer is None else item.layer]
        except VectorError as error:
            raise invalid(str(error), f"{where}.layer") from None
        strength = item.strength
        if item.dose is not None:
            strength = item.dose / vector.relative_dose(1.0)
        if strength is None:
            strength = 1.0
        if item.operator == "ablate" and not 0 <= strength <= 1:
            raise invalid(
                f"ablating takes a part of the projection, from 0 to 1, not {strength:g}",
                f"{where}.strength",
            )
        return Intervention(
            vector.layer, vector.array, strength, item.operator, item.scope, item.vector
        )

    def _gate(self, vectors: str, name: str, where: str) -> Gate:
        try:
            return self.vectors[vectors].gate(name)
        except SteerError as error:
            raise invalid(str(error), f"{where}.gate") from None

    def _too_much(self, name: str, act: Intervention) -> str | None:
        """A sentence about a dose that nothing is known of."""
        if act.operator != "add":
            return None
        dose = abs(self.vectors[name][act.layer].relative_dose(act.strength))
        evidence = self.evidence.get(name)
        if evidence is not None and evidence.doses:
            low, high = evidence.doses[0], evidence.doses[-1]
            if dose > high * 1.001:
                return (
                    f"the relative dose {dose:.2f} of {name} lies above the measured range "
                    f"({low:.2f} to {high:.2f}); responses may fall apart"
                )
            return None
        if dose > _USUAL_DOSE:
            return f"the relative dose {dose:.2f} of {name} is high and was never measured"
        return None


def check_name(name: str, what: str) -> None:
    """Refuse what could not stand in a model id or a URL.

    Raises:
        VectorError: If the name has other characters than letters, digits, ".", "_" and "-".
    """
    if not _NAME.fullmatch(name):
        raise VectorError(
            f"{name[:60]!r} cannot be a name of {what}; use letters, digits, '.', '_' and '-'"
        )


def parse_preset(text: str) -> tuple[str, tuple[Steer, ...]]:
    """A preset as it is written on the command line: `short=concise,layer:18,strength:0.8`.

    Raises:
        VectorError: If it cannot be read.
    """
    name, equals, rest = text.partition("=")
    first, *pairs = rest.split(",")
    fields: dict[str, str] = {"vector": first}
    for pair in pairs:
        key, colon, value = pair.partition(":")
        if not colon or key not in Steer.model_fields or key in fields:
            equals = ""
        fields[key] = value
    try:
        if not equals or not first:
            raise ValueError
        return name, (Steer.model_validate(fields),)
    except (ValidationError, ValueError):
        raise VectorError(
            f"{text[:80]!r} is no preset; write it as NAME=VECTORS,layer:18,strength:0.8 "
            "(and gate:NAME, operator:ablate, scope:generated)"
        ) from None
