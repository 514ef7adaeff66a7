"""What a version is: everything a user, a service or an auditor may ask, beside the weights."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from model_store.errors import CorruptVersion
from operators import OperatorConfig

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    # NaN and infinity have no JSON: a metric that is one must not be published as null
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileRecord(_Record):
    """What a file of the version must hash to."""

    sha256: Sha256
    size: int = Field(ge=0)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The record of these bytes."""
        return cls(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


class FieldRecord(_Record):
    """A field as the surrogate takes or gives it."""

    name: str
    unit: str
    description: str = ""


class Card(_Record):
    """The card of a version; ``files`` is filled in by the store when it publishes.

    Attributes:
        problem: the problem it solves, such as ``darcy``.
        scheme: the discrete operator of its labels, such as ``tpfa-harmonic-v1``.
        operator: configuration of the network.
        normalizers: constants of the two normalizers that are not among the weights.
        grids: the grids (ny, nx) it was tested on.
        extent: side lengths (Ly, Lx) of its training data [m].
        frame_interval: time between two frames of an evolution problem [s].
        walls: boundary conditions of an evolution problem.
        first_frame: the earliest frame of a trajectory from which its rollouts were trained and calibrated.
        training_hull: bounds of the training inputs, such as ``contrast_max`` and ``jump_max``.
        hard_range: what a service does with an input outside of them: answer with a flag, or refuse it.
        dataset: of the training data, at least its ``sha256``.
        run: the whole text of the run file.
        metrics: test split -> metric -> value.
        calibration: constants of the error estimate that were fitted on held-out data, as older versions have
            them; newer ones have the whole of it in ``calibration.safetensors``.
    """

    format: Literal[1] = 1
    description: str = ""
    problem: str
    scheme: str
    operator: OperatorConfig
    normalizers: Mapping[str, float] = {}
    grids: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(min_length=1)
    extent: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    inputs: tuple[FieldRecord, ...]
    outputs: tuple[FieldRecord, ...]
    frame_interval: PositiveFloat | None = None
    walls: str | None = None
    first_frame: int = Field(default=0, ge=0)
    training_hull: Mapping[str, float] = {}
    hard_range: Literal["flag", "refuse"] = "flag"
    dataset: Mapping[str, str | int | float]
    run: str
    metrics: Mapping[str, Mapping[str, float]]
    calibration: Mapping[str, float] = {}
    code_version: str
    created: AwareDatetime
    files: Mapping[str, FileRecord] = {}

    def to_json(self) -> bytes:
        """The bytes of ``card.json``, for people too."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read ``card.json``.

        Raises:
            CorruptVersion: not a card.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise CorruptVersion(
                f"card.json is damaged or of another program version: {where}: {first['msg']}"
            ) from None
