"""KServe's Python server with Digits as its models.

python kserve_server.py WEIGHTS.npz --http_port PORT --enable_grpc false
"""

import sys

import kserve
import numpy as np
from digits import Digits, end_with_stdin
from kserve import model_server
from kserve.protocol.rest.server import RESTServer

OUTPUTS = {"probabilities": ("FP32", [-1, 10]), "label": ("INT64", [-1]), "name": ("BYTES", [-1])}


class OnLoopback(RESTServer):
    """KServe listens at all addresses of the machine, and has no option for another one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.config.host = "127.0.0.1"


class Undeclared(kserve.Model):
    """A model whose metadata are those of kserve.Model: no inputs and no outputs."""

    def __init__(self, name: str, digits: Digits):
        super().__init__(name)
        self.digits, self.ready = digits, True

    async def predict(self, payload: kserve.InferRequest, headers=None, response_headers=None) -> kserve.InferResponse:
        p = self.digits(payload.inputs[0].as_numpy())
        label = p.argmax(1)
        values = {"probabilities": p, "label": label.astype(np.int64), "name": np.array([f"class_{k}" for k in label], object)}
        outputs = []
        for name, (datatype, _) in OUTPUTS.items():
            output = kserve.InferOutput(name, list(values[name].shape), datatype)
            output.set_data_from_numpy(values[name], binary_data=False)
            outputs.append(output)
        # with the request's outputs, the response has those, and as binary data where that is asked for
        return kserve.InferResponse(payload.id, self.name, outputs, requested_outputs=payload.request_outputs)


class Declared(Undeclared):
    def __init__(self, name: str, datatype: str, digits: Digits):
        super().__init__(name, digits)
        self.datatype = datatype

    def get_input_types(self) -> list[dict]:
        return [{"name": "images", "datatype": self.datatype, "shape": [-1, 1, 8, 8]}]

    def get_output_types(self) -> list[dict]:
        return [{"name": name, "datatype": datatype, "shape": shape} for name, (datatype, shape) in OUTPUTS.items()]


if __name__ == "__main__":
    end_with_stdin()
    model_server.RESTServer = OnLoopback
    digits = Digits(sys.argv[1])
    models = [Declared("digits", "FP32", digits), Declared("digits-uint8", "UINT8", digits), Undeclared("digits-undeclared", digits)]
    kserve.ModelServer().start(models)
