"""campaign.json: what a campaign has measured of its runs (speeds, sizes) and which of them failed."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..devices import device_name
from ..forms import NUMBER
from ..runner import Task
from ..utils import read_json, save_json

FILE = "campaign.json"
FORMS = {"speeds": {...: {...: NUMBER}}, "sizes": {...: int}, "failed": {...: str}, "seconds": NUMBER}
CPU = "CPU"  # the device's name on a machine without a GPU


def kind_of(task: Task) -> str:
    """`KD/MNIST/ResNet32_to_ResNet8-hard`: what a run shares with its other seeds."""
    return "/".join(task.folder.parts[-4:-1])


def name_of(task: Task) -> str:
    """`KD/MNIST/ResNet32_to_ResNet8-hard/seed0`."""
    return "/".join(task.folder.parts[-4:])


def device_here() -> str:
    """The GPU's name, or CPU."""
    return plain_device(device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")))


def plain_device(name: str) -> str:
    """A device's name as a result has it, without the number of its threads or processes."""
    return name.partition(",")[0]


@dataclass
class Book:
    """The content of campaign.json.

    speeds: {device: {kind: seconds an epoch}}. sizes: {kind: bytes of a run that did not fit into the folder}. failed: {run: reason}.
    seconds: how long all slices took.
    """

    speeds: dict[str, dict[str, float]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def read(cls, path: Path | str = FILE) -> "Book":
        """The book of a campaign's folder, a new one where there is none. UsageError for a damaged file."""
        found = read_json(path, **FORMS)
        return cls(**{k: found[k] for k in FORMS}) if found else cls()

    def save(self, path: Path | str = FILE) -> None:
        """Writes it, whole or not at all."""
        save_json(path, asdict(self))

    def note_speed(self, device: str, kind: str, seconds: float) -> None:
        """Notes how many seconds an epoch of a run takes on a device."""
        self.speeds.setdefault(device, {})[kind] = round(seconds, 4)

    def note_result(self, task: Task) -> None:
        """Takes the speed of a finished run from its result."""
        if task.result and "device" in task.result and task.result.get("seconds"):
            self.note_speed(plain_device(task.result["device"]), kind_of(task), task.result["seconds"] / task.args.epochs)
