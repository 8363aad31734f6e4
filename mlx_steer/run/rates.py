"""How fast a run went: in its manifest, for the plans of later runs."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

_Positive = Annotated[FiniteFloat, Field(gt=0)]


class MachineRates(BaseModel):
    """Speeds of one model on one machine.

    Attributes:
        read: Prompt tokens per second.
        decode: Response tokens per second, all rows of the batch together.
        rows: Decoded at a time.
        parameters: Of the model, those that a token meets.
        parameter_bytes: Bytes of its weights for each of these.
        dtype_bytes: Of a number in the hidden state.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    read: _Positive
    decode: _Positive
    rows: int
    parameters: _Positive
    parameter_bytes: _Positive
    dtype_bytes: int
