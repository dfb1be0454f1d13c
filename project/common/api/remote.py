"""A teacher behind a server, as a BlackBox asks it."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..cli import UsageError
from ..datasets.images import to_pixels
from ..utils import digest
from .answers import Reading
from .client import Client
from .options import ApiOptions
from .protocols import PROTOCOLS


class Remote:
    """Images as a net sees them become the bytes that a server takes.

    here, its: (mean, std), (1, C, 1, 1) each, for pixels in [0, 1]: of the images that come, and of those that the server expects where it
    takes normalised numbers. answers_identity: letters of the URL, the protocol, the form of the images, and the options that say how
    answers are read. identity: the same letters; where these options have their defaults, those of the first three, as in older files.
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
        plain = digest(self.client.url, args.chosen_protocol(), args.api_input, *shape)
        way = args.api_output, args.api_scale, args.api_labels, args.api_scores, args.api_body, list(classes), reading.map
        self.answers_identity = digest(plain, *way)
        default = all(getattr(args, name) == getattr(ApiOptions, name) for name in ApiOptions.READING)
        self.identity = plain if default else self.answers_identity

    def describe(self) -> None:
        """Reads what the server says about itself.

        RunError where it cannot be reached; UsageError where it states another normalisation than --teacher_normalize.
        """
        self.protocol.describe()
        stated = self.protocol.about.get("normalize")
        if self.protocol.form != "float32" or not isinstance(stated, dict):
            return
        theirs = [stated.get(k) for k in ("mean", "std")]
        if not all(isinstance(v, list) and len(v) == self.its[0].numel() and {*map(type, v)} <= {int, float} for v in theirs):
            return
        if not np.allclose(theirs, [v.flatten().tolist() for v in self.its], atol=1e-6):
            if self.args.teacher_normalize:
                what = ",".join(f"{v:.6g}" for values in theirs for v in values)
                hint = f"give --teacher_normalize {what}, or leave it out"
                raise UsageError(f"{self.client.url} takes images of another normalisation than --teacher_normalize; {hint}")
            self.its = tuple(torch.tensor(v, device=self.here[0].device).view(1, -1, 1, 1) for v in theirs)

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
