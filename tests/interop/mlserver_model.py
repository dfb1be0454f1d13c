"""Digits as a model of MLServer; model-settings.json names this class, and declares the inputs and outputs."""

import mlserver
import numpy as np
from digits import Digits, end_with_stdin
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Served(mlserver.MLModel):
    async def load(self) -> bool:
        end_with_stdin()
        self.digits = Digits(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        p = self.digits(NumpyCodec.decode_input(payload.inputs[0]))
        label = p.argmax(1)
        outputs = [
            NumpyCodec.encode_output("probabilities", p),
            NumpyCodec.encode_output("label", label.astype(np.int64)),
            StringCodec.encode_output("name", [f"class_{k}" for k in label]),
        ]
        asked = {o.name for o in payload.outputs or []}
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=[o for o in outputs if not asked or o.name in asked])
