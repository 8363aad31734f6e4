"""What a server offers: its model, vectors by name, and presets with the evidence for them."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import JsonValue, ValidationError

from mlx_steer.bands import LayerOrBand, layer_words, layers_of, read_layer
from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.errors import SteerError, VectorError
from mlx_steer.serve.problems import Problem, invalid
from mlx_steer.serve.protocol import MOST_VECTORS, Steer
from mlx_steer.vectors import SteeringVectorSet, load_vectors, relative_dose
from mlx_steer.vectors.evidence import Evidence, GatedCell, evidence_in

MOST_PRESETS = 200

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Without evidence, relative doses beyond this are called unmeasured and high.
_USUAL_DOSE = 1.0
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Measured:
    """What a run measured with vectors, as far as a server needs it.

    Attributes:
        behavior: Its title.
        answer: What came out, in a sentence or two.
        layer: The layer or band that was chosen; None if none was.
        strength: Its strength.
        dose: Its relative dose.
        verdict: On steering; None where no rule gave one.
        gated: The cell behind a gate, if that is what works.
        doses: By layer, the highest relative dose that was measured.
    """

    behavior: str
    answer: str
    layer: LayerOrBand | None = None
    strength: float | None = None
    dose: float | None = None
    verdict: str | None = None
    gated: GatedCell | None = None
    doses: Mapping[int, float] = field(default_factory=dict)

    @staticmethod
    def of(evidence: Evidence, vectors: SteeringVectorSet) -> Measured:
        """What is kept of the evidence beside vectors."""
        layer, strength = evidence.layer, evidence.strength
        layers = () if layer is None else layers_of(layer)
        if layer is None or strength is None or not all(one in vectors for one in layers):
            return Measured(evidence.title, evidence.answer, verdict=evidence.verdict)
        dose = relative_dose([vectors[one] for one in layers], strength)
        gates = {gate.name for gate in vectors.metadata.gates}
        gated = evidence.gated
        if gated is not None and not (
            gated.gate in gates and all(one in vectors for one in layers_of(gated.layer))
        ):
            gated = None
        doses = {d.layer: d.highest for d in evidence.doses}
        # What was chosen was measured, whether or not it met the limits.
        cells = [(layer, strength), *([(gated.layer, gated.strength)] if gated else [])]
        for place, factor in cells:
            for one in layers_of(place):
                own = abs(vectors[one].relative_dose(factor) or 0.0)
                doses[one] = max(own, doses.get(one, 0.0))
        known = (evidence.title, evidence.answer, layer, strength, dose, evidence.verdict)
        return Measured(*known, gated, doses)

    @property
    def places(self) -> str:
        """The layers that were measured, in words."""
        if self.layer is not None and set(layers_of(self.layer)) == set(self.doses):
            return layer_words(self.layer)
        return f"layers {', '.join(map(str, sorted(self.doses)))}"

    def told(self) -> dict[str, JsonValue]:
        """As responses have it."""
        told = {**asdict(self), "doses": {str(k): dose for k, dose in self.doses.items()}}
        del told["gated"]  # a preset says it
        return told


@dataclass(frozen=True)
class Preset:
    """A named condition: what steers, and what is known of it."""

    name: str
    steering: tuple[Steer, ...]
    measured: Measured | None = None


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
        measured: By vectors' name: what a run measured with them.
    """

    def __init__(
        self,
        offered: Offered,
        vectors: Mapping[str, SteeringVectorSet],
        measured: Mapping[str, Measured] | None = None,
    ) -> None:
        """See the class."""
        self.offered = offered
        self.vectors = dict(vectors)
        self._measured = dict(measured or {})
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
            The catalog, with a preset for each cell that a run chose, and what a person should
            know.

        Raises:
            VectorError: If a folder is no vectors folder, does not fit, or a name stands twice.
        """
        vectors: dict[str, SteeringVectorSet] = {}
        measured: dict[str, Measured] = {}
        notes: list[str] = []
        for given, folder in named:
            found = load_vectors(folder)
            name = given or found.metadata.behavior
            check_name(name, "vectors")
            if name in vectors:
                raise VectorError(f"two vectors are called {name!r}; name them: NAME=DIR")
            notes += found.check_fits(offered.hidden_size, offered.num_layers, offered.model)
            vectors[name] = found
            if evidence := evidence_in(folder, found):
                measured[name] = Measured.of(evidence, found)
        catalog = Catalog(offered, vectors, measured)
        for name, known in measured.items():
            if known.layer is not None:
                catalog.add_preset(name, _steers(name, known.layer, known.strength))
            if (cell := known.gated) is not None:
                behind = _steers(name, cell.layer, cell.strength, cell.gate)
                catalog.add_preset(f"{name}-gated", behind)
        return catalog, notes

    def measured(self, name: str) -> Measured | None:
        """What is known of vectors' effect."""
        return self._measured.get(name)

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
        one = len({item.vector for item in steering}) == 1
        measured = self.measured(steering[0].vector) if one else None
        preset = Preset(name, steering, measured)
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
            one = vector.relative_dose(1.0)
            if not one:
                raise invalid(
                    f"the dose of {item.vector} is unknown; give a strength", f"{where}.dose"
                )
            strength = item.dose / one
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
        dose = self.vectors[name][act.layer].relative_dose(act.strength)
        if dose is None:
            return None
        measured = self.measured(name)
        if measured is None or measured.layer is None or measured.strength is None:
            if abs(dose) > _USUAL_DOSE:
                return f"the relative dose {dose:.2f} of {name} is high and was never measured"
            return None
        if act.layer not in measured.doses:
            return f"{name} was measured at {measured.places}, and not at {act.layer}"
        sign = math.copysign(1.0, measured.strength)
        low, high = sorted((0.0, sign * measured.doses[act.layer]))
        if not low - _ROUNDING <= dose <= high + _ROUNDING:
            return (
                f"the relative dose {dose:.2f} of {name} lies outside of what was measured "
                f"({low:.2f} to {high:.2f}); responses may fall apart"
            )
        return None


def _steers(
    name: str, layer: LayerOrBand, strength: float | None, gate: str | None = None
) -> tuple[Steer, ...]:
    """Vectors at a layer or at each layer of a band."""
    return tuple(
        Steer(vector=name, layer=one, strength=strength, gate=gate) for one in layers_of(layer)
    )


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
        place = read_layer(fields.pop("layer")) if "layer" in fields else None
        places = (None,) if place is None else layers_of(place)
        return name, tuple(Steer.model_validate({**fields, "layer": one}) for one in places)
    except (ValidationError, ValueError):
        raise VectorError(
            f"{text[:80]!r} is no preset; write it as NAME=VECTORS,layer:18,strength:0.8 "
            "(and gate:NAME, operator:ablate, scope:generated)"
        ) from None
