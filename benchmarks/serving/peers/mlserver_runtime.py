"""MLServer: a runtime whose forward takes all requests of its window."""

import os

import numpy as np
import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.serving.models import build


class Runtime(MLModel):
    """What MLServer calls."""

    async def load(self) -> bool:
        """Build the model of this name."""
        self._forward = build(self.settings.name, os.environ["BENCH_FROZEN"] == "1")
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One forward; the batch axis comes first."""
        fields = np.ascontiguousarray(NumpyCodec.decode_input(payload.inputs[0]), np.float32)
        answer = self._forward(torch.from_numpy(fields)).contiguous().numpy()
        outputs = [NumpyCodec.encode_output("pressure", answer)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
