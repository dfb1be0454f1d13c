"""The classifier that the servers of these tests serve: numpy alone, because their environments have no torch."""

import os
import threading

import numpy as np


class Digits:
    """Softmax regression on Digits. path: an .npz file with weights (64, 10) and bias (10,), float32.

    The number of images of each call is written to the file that the environment variable SERVED names, if any.
    """

    def __init__(self, path: str):
        with np.load(path) as content:
            self.weights, self.bias = content["weights"], content["bias"]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Probabilities (N, 10), float32, of images (N, 1, 8, 8): normalised numbers, or pixels from 0 to 255 as uint8."""
        if path := os.environ.get("SERVED"):
            with open(path, "a") as f:
                f.write(f"{len(x)}\n")
        if x.dtype == np.uint8:
            x = (x.astype(np.float32) / 255 - 0.5) / 0.5
        logits = x.reshape(len(x), -1).astype(np.float32) @ self.weights + self.bias
        e = np.exp(logits - logits.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)


def end_with_stdin() -> None:
    """Ends this process when its standard input is closed, as by the death of the tests, if the environment says END_WITH_STDIN."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    if os.environ.get("END_WITH_STDIN"):
        threading.Thread(target=wait, daemon=True).start()
