"""The task image-classification as Hugging Face's inference API has it: a picture in, labels and scores out.

https://huggingface.co/docs/inference-providers/tasks/image-classification
"""

import base64
import binascii
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from ..api import wire
from ..datasets.pictures import Unreadable, read_picture
from .keys import Key
from .refusals import Refused

TOP_K = 5
MOST_PIXELS = 2**25  # of a picture: decoded, it takes 100 MB


def read_request(body: bytes, content_type: str, query: str | None) -> tuple[Tensor, int]:
    """(picture uint8 (1 or 3, h, w), top_k) of a body: PNG or JPEG, or JSON with its base64. query: ?top_k=. Refused (400) otherwise."""
    top_k: object = TOP_K if query is None else int(query) if query.isascii() and query.isdecimal() and len(query) < 9 else query
    if content_type.partition(";")[0].strip().lower() == "application/json":
        try:
            head = wire.parsed(body)
            body = base64.b64decode(head["inputs"], validate=True)
            top_k = (head.get("parameters") or {}).get("top_k", top_k)
        except (ValueError, TypeError, KeyError, AttributeError, binascii.Error):
            raise Refused(400, 'the JSON must be {"inputs": picture in base64, "parameters": {"top_k": K}}') from None
    if type(top_k) is not int or top_k < 1:
        raise Refused(400, "top_k must be an integer of at least 1")
    return decoded(body), top_k


def decoded(body: bytes) -> Tensor:
    """The picture of a PNG or JPEG file, uint8 (3, h, w), or (1, h, w) if it is grey. Refused (400) for anything else."""
    try:
        with Image.open(io.BytesIO(body), formats=("PNG", "JPEG")) as header:
            pixels, grey = header.width * header.height, header.mode.startswith(("1", "L", "I"))
    except Exception:  # Pillow's readers raise what they like
        raise Refused(400, f"the body is no PNG or JPEG picture ({len(body):,} bytes)") from None
    if pixels > MOST_PIXELS:
        raise Refused(400, f"the picture has {pixels:,} pixels; at most {MOST_PIXELS:,} are decoded")
    try:
        return pil_to_tensor(read_picture(io.BytesIO(body), "L" if grey else "RGB"))
    except Unreadable as e:
        raise Refused(400, f"the picture cannot be read: {e}") from None


def outputs_for(key: Key) -> list[str]:
    """The outputs that this task is made of, under a key's response."""
    return ["label"] if key.response == "hard" else ["scores", "labels"] if key.response.startswith("topk") else ["probabilities"]


def ranked(outputs: dict[str, np.ndarray], classes: Sequence[str], key: Key, top_k: int) -> list[dict]:
    """[{label, score}, ...] of one picture, the most probable first: at most top_k, and at most what the response shows."""
    if key.response == "hard":
        return [{"label": classes[int(outputs["label"][0])], "score": 1.0}]
    if key.response.startswith("topk"):
        scores, labels = outputs["scores"][0], outputs["labels"][0]
    else:
        labels = np.argsort(-outputs["probabilities"][0], kind="stable")
        scores = outputs["probabilities"][0][labels]
    ranks = zip(labels[:top_k], scores[:top_k], strict=True)
    return [{"label": classes[int(k)], "score": float(str(s))} for k, s in ranks]
