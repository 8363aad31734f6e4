"""What every record of a run directory is: frozen, and lenient only towards later versions."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """One object of a file."""

    # A later version may add keys; what is known must have the right type.
    model_config = ConfigDict(
        frozen=True, extra="ignore", from_attributes=True, protected_namespaces=()
    )
