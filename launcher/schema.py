"""Base of the models of all files that a user writes: the job file, the lab file, the inventory."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping in a file. An unknown key is an error, so that a misspelled one does not pass for a default; `strict`
    refuses conversions, so that `workers: "4"` does not pass for a number; a checked value never changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
