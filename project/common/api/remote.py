"""A teacher behind a server, as a BlackBox asks it."""

import hashlib
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..datasets.images import to_pixels
from .answers import Reading
from .client import Client
from .options import ApiOptions
from .protocols import PROTOCOLS


class Remote:
    """Images as a net sees them become the bytes that a server takes.

    here, its: (mean, std), (1, C, 1, 1) each, for pixels in [0, 1]: of the images that come, and of those that the server expects where it
    takes normalised numbers. identity: letters of the URL, the protocol and the form of the images.
    """

    def __init__(
        self,
        args: ApiOptions,
        classes: Sequence[str],
        shape: tuple[int, int, int],
        here: tuple[Tensor, Tensor],
        its: tuple[Tensor, Tensor],
    ):
        self.args, self.here, self.its = args, here, its
        self.client = Client(args, args.teacher.rstrip("/"))
        reading = Reading(args.response, args.api_scale, classes, args.api_classes)
        self.protocol = PROTOCOLS[args.chosen_protocol()](args, self.client, reading, shape)
        about = [self.client.url, args.chosen_protocol(), args.api_input, args.api_output, args.api_labels, args.api_scores, *shape]
        self.identity = hashlib.sha256(repr(about).encode()).hexdigest()[:12]

    def describe(self) -> None:
        """Reads what the server says about itself; RunError where it cannot be reached."""
        self.protocol.describe()

    @property
    def batch(self) -> int:
        """Images of the next request."""
        return 1 if self.protocol.untried else self.protocol.batch

    def encode(self, x: Tensor) -> list[bytes]:
        """What is sent for each image of x (N, C, H, W)."""
        (mean, std), form = self.here, self.protocol.form
        if form == "float32":
            if any(not torch.equal(a, b) for a, b in zip(self.here, self.its, strict=True)):
                x = (x * std + mean - self.its[0]) / self.its[1]
            rows = x.float().cpu().contiguous().numpy().astype("<f4", copy=False)
            return [row.tobytes() for row in rows]
        pixels = to_pixels(x, mean, std).cpu().contiguous()
        if form == "uint8":
            return [row.tobytes() for row in pixels.numpy()]
        return [as_file(p, form) for p in pixels.numpy()]

    def send(self, parts: Sequence[bytes], request: str, attempts: list[tuple]) -> np.ndarray:
        """The answers to encoded images; see OpenInference.send."""
        return self.protocol.send(parts, request, attempts)


def as_file(pixels: np.ndarray, form: str) -> bytes:
    """A PNG or JPEG file of pixels, uint8 (1 or 3, H, W)."""
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, form, quality=95)
    return file.getvalue()
