"""Contrast pairs into steering vectors: Contrastive Activation Addition (Rimsky et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_steer.behaviors import Behavior, load_behavior
from mlx_steer.blas import one_thread
from mlx_steer.engine.capture import response_states
from mlx_steer.engine.jobs import too_long
from mlx_steer.errors import DataError
from mlx_steer.extraction.directions import METHODS, Float64, held_out_auc
from mlx_steer.model.load import Model
from mlx_steer.vectors import DatasetInfo, SteeringVector, SteeringVectorSet, VectorMetadata
from mlx_steer.words import Method, TokenPosition


@dataclass(frozen=True, eq=False)
class PairStates:
    """The hidden states of a behavior's contrast pairs, one for each response and layer.

    Attributes:
        metadata: What vectors made from them are to say of themselves.
        positive: By layer: float64, shape (pairs, hidden_size).
        negative: The same for the other side.
    """

    metadata: VectorMetadata
    positive: dict[int, Float64]
    negative: dict[int, Float64]

    def vectors(self, method: Method = "mean_difference") -> SteeringVectorSet:
        """Steering vectors by one of `directions.METHODS`."""
        made = []
        for layer, positive in self.positive.items():
            negative = self.negative[layer]
            norms = [*np.linalg.norm(positive, axis=1), *np.linalg.norm(negative, axis=1)]
            array = METHODS[method](positive, negative).astype(np.float32)
            made.append(SteeringVector(layer, array, float(np.mean(norms))))
        suffix = "" if self.metadata.seed is None else " of shuffled sides"
        return SteeringVectorSet(made, self.metadata.model_copy(update={"method": method + suffix}))

    def separation(self, method: Method = "mean_difference") -> dict[int, float]:
        """By layer: held-out area under the ROC curve of positive against negative states.

        It tells which layers know the behavior before anything is generated: 0.5 is chance, 1 means
        that directions made from other pairs put every positive state above every negative one.
        """
        return {
            layer: held_out_auc(positive, self.negative[layer], method)
            for layer, positive in self.positive.items()
        }


def extract(
    model: Model,
    behavior: Behavior | str,
    layers: Sequence[int] | None = None,
    *,
    token_position: TokenPosition = "last",
    method: Method = "mean_difference",
    shuffle_seed: int | None = None,
) -> SteeringVectorSet:
    """Steering vectors of a behavior; by default mean(positive) - mean(negative) at each layer.

    Args:
        model: The model whose hidden states are taken.
        behavior: A behavior, the name of a shipped one, or a folder of one's own.
        layers: Layers, 0-based, negative from the end; all by default.
        token_position: `last` takes the final response token, `mean` all response tokens.
        method: One of `directions.METHODS`.
        shuffle_seed: If given, each pair's two sides are swapped at random first: a control that
            keeps the texts but not the meaning.

    Returns:
        Vectors of shape (hidden_size,), not normalised, with the mean norm of the hidden states.

    Raises:
        ModelError: If the model has no such layer.
        DataError: If the behavior is not usable.
    """
    states = pair_states(
        model, behavior, layers, token_position=token_position, shuffle_seed=shuffle_seed
    )
    return states.vectors(method)


def pair_states(
    model: Model,
    behavior: Behavior | str,
    layers: Sequence[int] | None = None,
    *,
    token_position: TokenPosition = "last",
    shuffle_seed: int | None = None,
) -> PairStates:
    """The hidden states that `extract` makes vectors from; the same arguments."""
    if isinstance(behavior, str):
        behavior = load_behavior(behavior)
    chosen = sorted({model.layer(i) for i in layers}) if layers else list(range(model.num_layers))
    pairs = behavior.pairs
    prompts = [model.chat.answer_ids(p.prompt, p.system, p.tools) for p in pairs]
    responses = [
        (model.chat.response_ids(p.positive), model.chat.response_ids(p.negative)) for p in pairs
    ]
    for pair, ids, texts in zip(pairs, prompts, responses, strict=True):
        if not all(texts):
            raise DataError(f"pair {pair.id} of {behavior.name} has a response without any token")
        longest = len(ids) + max(map(len, texts))
        if reason := too_long(model, f"pair {pair.id} of {behavior.name}", longest):
            raise DataError(reason)
    swapped = np.zeros(len(pairs), bool)
    if shuffle_seed is not None:
        swapped = np.random.default_rng(shuffle_seed).random(len(pairs)) < 0.5

    sides = {k: np.zeros((2, len(pairs), model.hidden_size)) for k in chosen}
    with one_thread():
        every = response_states(model, prompts, responses, chosen)
    for i, both in enumerate(every):
        for side, by_layer in enumerate(both):
            for layer, tokens in by_layer.items():
                # Means in float64: states of norm far above their difference.
                exact = tokens.astype(np.float64)
                state = exact[-1] if token_position == "last" else exact.mean(axis=0)
                sides[layer][side ^ int(swapped[i]), i] = state
    metadata = VectorMetadata(
        behavior=behavior.name,
        method="mean_difference",
        token_position=token_position,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        model=model.info,
        chat_template_sha256=model.chat.sha256,
        dataset=DatasetInfo(name=behavior.name, sha256=behavior.sha256, pairs=len(pairs)),
        seed=shuffle_seed,
    )
    return PairStates(
        metadata, {k: v[0] for k, v in sides.items()}, {k: v[1] for k, v in sides.items()}
    )
