"""Options of a student that learns from a generator's images, without data."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..options import StudentOptions, opt
from ..utils import matching


@dataclass
class GeneratorOptions(StudentOptions):
    """SETTINGS: {data set: {option: value}} of the released code, for options that are not given."""

    GROUP: ClassVar = "method"
    DATA: ClassVar = False
    SETTINGS: ClassVar = {}

    latent: int = opt(256, "dimension of the generator's input noise (latents)", ge=1)
    ngf: int = opt(64, "number of channels before the generator's last convolution", ge=1)

    def presets(self) -> dict[str, Any]:
        return self.SETTINGS.get(matching(self.dataset, self.SETTINGS), {})
