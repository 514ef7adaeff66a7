# ruff: noqa
# fmt: off
# mypy: disable-error-code=type-arg
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METHOD_UNSPECIFIED: _ClassVar[Method]
    METHOD_AUTO: _ClassVar[Method]
    METHOD_SURROGATE: _ClassVar[Method]
    METHOD_HYBRID: _ClassVar[Method]
    METHOD_SOLVER: _ClassVar[Method]
    METHOD_ADJOINT: _ClassVar[Method]

class ErrorRequest(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REQUEST_UNSPECIFIED: _ClassVar[ErrorRequest]
    ERROR_REQUEST_NONE: _ClassVar[ErrorRequest]
    ERROR_REQUEST_BOUND: _ClassVar[ErrorRequest]
    ERROR_REQUEST_CERTIFIED: _ClassVar[ErrorRequest]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_BULK: _ClassVar[Priority]
METHOD_UNSPECIFIED: Method
METHOD_AUTO: Method
METHOD_SURROGATE: Method
METHOD_HYBRID: Method
METHOD_SOLVER: Method
METHOD_ADJOINT: Method
ERROR_REQUEST_UNSPECIFIED: ErrorRequest
ERROR_REQUEST_NONE: ErrorRequest
ERROR_REQUEST_BOUND: ErrorRequest
ERROR_REQUEST_CERTIFIED: ErrorRequest
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_BULK: Priority

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Tolerance(_message.Message):
    __slots__ = ("relative_energy", "discretization")
    RELATIVE_ENERGY_FIELD_NUMBER: _ClassVar[int]
    DISCRETIZATION_FIELD_NUMBER: _ClassVar[int]
    relative_energy: float
    discretization: bool
    def __init__(self, relative_energy: _Optional[float] = ..., discretization: _Optional[bool] = ...) -> None: ...

class ErrorEstimate(_message.Message):
    __slots__ = ("kind", "norm", "lower", "upper", "l2_estimate", "steps", "coverage", "reference", "l2_lower", "l2_upper", "max_lower", "max_upper")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    L2_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    L2_LOWER_FIELD_NUMBER: _ClassVar[int]
    L2_UPPER_FIELD_NUMBER: _ClassVar[int]
    MAX_LOWER_FIELD_NUMBER: _ClassVar[int]
    MAX_UPPER_FIELD_NUMBER: _ClassVar[int]
    kind: str
    norm: str
    lower: float
    upper: float
    l2_estimate: float
    steps: int
    coverage: float
    reference: str
    l2_lower: float
    l2_upper: float
    max_lower: float
    max_upper: float
    def __init__(self, kind: _Optional[str] = ..., norm: _Optional[str] = ..., lower: _Optional[float] = ..., upper: _Optional[float] = ..., l2_estimate: _Optional[float] = ..., steps: _Optional[int] = ..., coverage: _Optional[float] = ..., reference: _Optional[str] = ..., l2_lower: _Optional[float] = ..., l2_upper: _Optional[float] = ..., max_lower: _Optional[float] = ..., max_upper: _Optional[float] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ms", "compute_ms", "certify_ms", "total_ms")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    CERTIFY_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    compute_ms: float
    certify_ms: float
    total_ms: float
    def __init__(self, queue_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ..., certify_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class SolveRequest(_message.Message):
    __slots__ = ("id", "problem", "fields", "parameters", "model", "method", "error", "tolerance", "dtype", "priority", "reproducible")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    REPRODUCIBLE_FIELD_NUMBER: _ClassVar[int]
    id: str
    problem: str
    fields: _containers.MessageMap[str, Tensor]
    parameters: _containers.ScalarMap[str, float]
    model: str
    method: Method
    error: ErrorRequest
    tolerance: Tolerance
    dtype: str
    priority: Priority
    reproducible: bool
    def __init__(self, id: _Optional[str] = ..., problem: _Optional[str] = ..., fields: _Optional[_Mapping[str, Tensor]] = ..., parameters: _Optional[_Mapping[str, float]] = ..., model: _Optional[str] = ..., method: _Optional[_Union[Method, str]] = ..., error: _Optional[_Union[ErrorRequest, str]] = ..., tolerance: _Optional[_Union[Tolerance, _Mapping]] = ..., dtype: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ..., reproducible: _Optional[bool] = ...) -> None: ...

class SolveResponse(_message.Message):
    __slots__ = ("fields", "model", "method", "operator", "errors", "in_distribution", "certified", "iterations", "timing", "id", "fault", "batch_size", "ood_scores", "explanations")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    IN_DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    CERTIFIED_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    OOD_SCORES_FIELD_NUMBER: _ClassVar[int]
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    fields: _containers.MessageMap[str, Tensor]
    model: str
    method: Method
    operator: str
    errors: _containers.RepeatedCompositeFieldContainer[ErrorEstimate]
    in_distribution: _containers.RepeatedScalarFieldContainer[bool]
    certified: _containers.RepeatedScalarFieldContainer[bool]
    iterations: _containers.RepeatedScalarFieldContainer[int]
    timing: Timing
    id: str
    fault: Fault
    batch_size: int
    ood_scores: _containers.RepeatedScalarFieldContainer[float]
    explanations: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, fields: _Optional[_Mapping[str, Tensor]] = ..., model: _Optional[str] = ..., method: _Optional[_Union[Method, str]] = ..., operator: _Optional[str] = ..., errors: _Optional[_Iterable[_Union[ErrorEstimate, _Mapping]]] = ..., in_distribution: _Optional[_Iterable[bool]] = ..., certified: _Optional[_Iterable[bool]] = ..., iterations: _Optional[_Iterable[int]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., id: _Optional[str] = ..., fault: _Optional[_Union[Fault, _Mapping]] = ..., batch_size: _Optional[int] = ..., ood_scores: _Optional[_Iterable[float]] = ..., explanations: _Optional[_Iterable[str]] = ...) -> None: ...

class Fault(_message.Message):
    __slots__ = ("type", "message", "field", "index", "rule", "retry_after")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    type: str
    message: str
    field: str
    index: _containers.RepeatedScalarFieldContainer[int]
    rule: str
    retry_after: int
    def __init__(self, type: _Optional[str] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., index: _Optional[_Iterable[int]] = ..., rule: _Optional[str] = ..., retry_after: _Optional[int] = ...) -> None: ...

class RolloutRequest(_message.Message):
    __slots__ = ("problem", "state", "parameters", "model", "method", "steps", "every", "start_step", "error", "dtype", "walls", "priority", "reproducible", "defects")
    class StateEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    WALLS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    REPRODUCIBLE_FIELD_NUMBER: _ClassVar[int]
    DEFECTS_FIELD_NUMBER: _ClassVar[int]
    problem: str
    state: _containers.MessageMap[str, Tensor]
    parameters: _containers.ScalarMap[str, float]
    model: str
    method: Method
    steps: int
    every: int
    start_step: int
    error: ErrorRequest
    dtype: str
    walls: str
    priority: Priority
    reproducible: bool
    defects: int
    def __init__(self, problem: _Optional[str] = ..., state: _Optional[_Mapping[str, Tensor]] = ..., parameters: _Optional[_Mapping[str, float]] = ..., model: _Optional[str] = ..., method: _Optional[_Union[Method, str]] = ..., steps: _Optional[int] = ..., every: _Optional[int] = ..., start_step: _Optional[int] = ..., error: _Optional[_Union[ErrorRequest, str]] = ..., dtype: _Optional[str] = ..., walls: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ..., reproducible: _Optional[bool] = ..., defects: _Optional[int] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("step", "time", "fields", "invariants", "error", "model", "in_distribution", "ood_score", "explanation", "defect", "exponential_bound")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    class InvariantsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    INVARIANTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IN_DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    OOD_SCORE_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    DEFECT_FIELD_NUMBER: _ClassVar[int]
    EXPONENTIAL_BOUND_FIELD_NUMBER: _ClassVar[int]
    step: int
    time: float
    fields: _containers.MessageMap[str, Tensor]
    invariants: _containers.ScalarMap[str, float]
    error: ErrorEstimate
    model: str
    in_distribution: bool
    ood_score: float
    explanation: str
    defect: float
    exponential_bound: float
    def __init__(self, step: _Optional[int] = ..., time: _Optional[float] = ..., fields: _Optional[_Mapping[str, Tensor]] = ..., invariants: _Optional[_Mapping[str, float]] = ..., error: _Optional[_Union[ErrorEstimate, _Mapping]] = ..., model: _Optional[str] = ..., in_distribution: _Optional[bool] = ..., ood_score: _Optional[float] = ..., explanation: _Optional[str] = ..., defect: _Optional[float] = ..., exponential_bound: _Optional[float] = ...) -> None: ...

class VjpRequest(_message.Message):
    __slots__ = ("request", "cotangents", "wrt", "steps", "start_step", "walls")
    class CotangentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    COTANGENTS_FIELD_NUMBER: _ClassVar[int]
    WRT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    WALLS_FIELD_NUMBER: _ClassVar[int]
    request: SolveRequest
    cotangents: _containers.MessageMap[str, Tensor]
    wrt: str
    steps: int
    start_step: int
    walls: str
    def __init__(self, request: _Optional[_Union[SolveRequest, _Mapping]] = ..., cotangents: _Optional[_Mapping[str, Tensor]] = ..., wrt: _Optional[str] = ..., steps: _Optional[int] = ..., start_step: _Optional[int] = ..., walls: _Optional[str] = ...) -> None: ...

class VjpResponse(_message.Message):
    __slots__ = ("gradient", "solution", "wrt", "errors")
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    SOLUTION_FIELD_NUMBER: _ClassVar[int]
    WRT_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    gradient: Tensor
    solution: SolveResponse
    wrt: str
    errors: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, gradient: _Optional[_Union[Tensor, _Mapping]] = ..., solution: _Optional[_Union[SolveResponse, _Mapping]] = ..., wrt: _Optional[str] = ..., errors: _Optional[_Iterable[float]] = ...) -> None: ...

class JvpRequest(_message.Message):
    __slots__ = ("request", "tangents", "steps", "every", "start_step", "walls", "wrt")
    class TangentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TANGENTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    WALLS_FIELD_NUMBER: _ClassVar[int]
    WRT_FIELD_NUMBER: _ClassVar[int]
    request: SolveRequest
    tangents: _containers.MessageMap[str, Tensor]
    steps: int
    every: int
    start_step: int
    walls: str
    wrt: str
    def __init__(self, request: _Optional[_Union[SolveRequest, _Mapping]] = ..., tangents: _Optional[_Mapping[str, Tensor]] = ..., steps: _Optional[int] = ..., every: _Optional[int] = ..., start_step: _Optional[int] = ..., walls: _Optional[str] = ..., wrt: _Optional[str] = ...) -> None: ...

class JvpResponse(_message.Message):
    __slots__ = ("tangents", "solution", "errors", "steps")
    class TangentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    TANGENTS_FIELD_NUMBER: _ClassVar[int]
    SOLUTION_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    tangents: _containers.MessageMap[str, Tensor]
    solution: SolveResponse
    errors: _containers.RepeatedScalarFieldContainer[float]
    steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tangents: _Optional[_Mapping[str, Tensor]] = ..., solution: _Optional[_Union[SolveResponse, _Mapping]] = ..., errors: _Optional[_Iterable[float]] = ..., steps: _Optional[_Iterable[int]] = ...) -> None: ...

class QuantitiesRequest(_message.Message):
    __slots__ = ("request", "quantities")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    QUANTITIES_FIELD_NUMBER: _ClassVar[int]
    request: SolveRequest
    quantities: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request: _Optional[_Union[SolveRequest, _Mapping]] = ..., quantities: _Optional[_Iterable[str]] = ...) -> None: ...

class Quantity(_message.Message):
    __slots__ = ("quantity", "unit", "values", "half_widths")
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    HALF_WIDTHS_FIELD_NUMBER: _ClassVar[int]
    quantity: str
    unit: str
    values: _containers.RepeatedScalarFieldContainer[float]
    half_widths: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, quantity: _Optional[str] = ..., unit: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ..., half_widths: _Optional[_Iterable[float]] = ...) -> None: ...

class QuantitiesResponse(_message.Message):
    __slots__ = ("quantities", "solution")
    QUANTITIES_FIELD_NUMBER: _ClassVar[int]
    SOLUTION_FIELD_NUMBER: _ClassVar[int]
    quantities: _containers.RepeatedCompositeFieldContainer[Quantity]
    solution: SolveResponse
    def __init__(self, quantities: _Optional[_Iterable[_Union[Quantity, _Mapping]]] = ..., solution: _Optional[_Union[SolveResponse, _Mapping]] = ...) -> None: ...
