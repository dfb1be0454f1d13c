"""Options of the data-free methods that AEAHL.py runs, and presets of the methods that AEAHL-RG is compared with."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..cli import UsageError
from ..models import canonical
from ..options import WEIGHTS_INIT, StudentOptions, opt
from ..utils import matching

TERMS = ("bn", "oh", "adv", "even", "act", "cr", "sbn", "tv")  # loss terms of a synthesis; the option w_NAME is the weight of NAME
SINGLE = {"generator": "single", "lr": 0.1}
LATEST = SINGLE | {"meta": "none", "g_steps": 1, "lr_g": 1e-3, "lr_z": 0.0, "images": "fresh", "warmup": 0, "augment": "none"}
LATEST |= {"temperature": 1.0}
ANEW = SINGLE | {"meta": "fresh", "warmup": 0}
PRESETS = {  # settings of the scripts of CMI and FastDFKD
    # fastdfkd: arXiv 2112.15278; cmi: 2105.08584; adi (DeepInversion with its adversarial term): 1912.08795; dfq: 2005.04136;
    # zskt: 1905.09768; dafl: 1904.01186
    "aeahl": {},
    "released": {"twins": True, "aea_compat": True},
    "fastdfkd": {"generator": "single", "reset_at": 140},
    "cmi": ANEW | {"g_steps": 200, "lr_g": 1e-3, "lr_z": 1e-3, "w_adv": 0.5, "w_bn": 1.0, "w_oh": 1.0, "w_cr": 0.8},
    "adi": ANEW
    | {"generator": "pixels", "g_steps": 1000, "lr_g": 0.1, "beta2": 0.99, "adv": "js", "w_adv": 1.0, "w_oh": 1.0}
    | {"w_sbn": 0.01, "w_tv": 1e-3},
    "dfq": LATEST | {"kd_steps": 10, "w_adv": 1.0, "w_bn": 1.0, "w_oh": 1.0, "w_even": 20.0, "wanted": "own"},
    "zskt": LATEST | {"kd_steps": 5, "w_adv": 1.0, "w_bn": 0.0, "w_oh": 0.0},
    "dafl": LATEST | {"kd_steps": 5, "latent": 512, "w_adv": 0.0, "w_bn": 0.0, "w_oh": 1.0, "w_even": 20.0, "w_act": 1e-3, "wanted": "own"},
}
TEACHER_SETTINGS = {"VGG11_BN": {"w_adv": 1.0}, "WRN40_2": {"w_adv": 1.1, "w_oh": 0.4}}
STEPS_SETTINGS = {2: {"lr_g": 5e-3, "lr_z": 0.015}, 5: {"lr_g": 3e-3}}  # FastDFKD-2 and FastDFKD-5: settings by --g_steps
MIRRORED = {"augment": "crop_flip"}
DATASET_SETTINGS = {"CIFAR10": MIRRORED, "CIFAR100": MIRRORED}
DATASET_SETTINGS |= {"TinyImageNet": MIRRORED | {"g_steps": 50}, "ImageNet": MIRRORED | {"g_steps": 50, "batch_size": 64}}


@dataclass
class SynthesisOptions(StudentOptions):
    """Options of the synthesis, the generator, the pool and the student."""

    GROUP: ClassVar = "method"
    NEEDS: ClassVar = "inside"
    DATA: ClassVar = False

    preset: Literal["aeahl", "released", "fastdfkd", "cmi", "adi", "dfq", "zskt", "dafl"] = opt(
        "aeahl", "method whose settings are used for options that are not given; released: AEAHL-RG with the settings of its released code"
    )
    response: str = "inside"
    weights_init: WEIGHTS_INIT = opt(
        "fan_out", "initial weights of the student, see docs/running.md; torch for ResNet18, ResNet34 and ResNet50 unless it is given"
    )
    epochs: int = opt(400, "number of epochs of the student, after the warm-up")
    batch_size: int = opt(256, "batch size in images, for the student and for a synthesis", ge=2)
    lr: float = opt(0.2, "learning rate of the student")
    weight_decay: float = 1e-4
    schedule: Literal["multistep", "cosine"] = "cosine"
    ep_steps: int = opt(400, "number of training steps of the student per epoch", ge=1)
    kd_steps: int = opt(400, "number of training steps of the student between two syntheses", ge=1)
    warmup: int = opt(20, "number of additional syntheses before the first epoch; the adversarial term begins with the last of them", ge=0)
    generator: Literal["rg", "single", "pixels"] = opt(
        "rg", "generator: two generators and a decoder (rg), one generator (single), or images whose pixels are trained (pixels)"
    )
    latent: int = opt(256, "dimension of the generator's input noise (latents)", ge=1)
    ngf: int = opt(64, "number of channels before a generator's last convolution", ge=1)
    meta: Literal["fomaml", "reptile", "none", "fresh"] = opt(
        "fomaml",
        "training of the generator: a copy for each synthesis, whose gradients (fomaml) or weights (reptile) then update it; directly, "
        "with fixed latents (none); or drawn anew before each synthesis (fresh)",
    )
    g_steps: int = opt(10, "number of steps per synthesis", ge=1)
    lr_g: float = opt(2e-3, "learning rate of the generator within a synthesis (Adam)", gt=0)
    lr_g_meta: float = opt(0.0, "learning rate of the generator's update after a synthesis (Adam); 0: --g_steps times --lr_g", ge=0)
    lr_z: float = opt(0.01, "learning rate of the latents within a synthesis (Adam); 0: fixed latents", ge=0)
    beta2: float = opt(0.999, "decay rate of the second moment of the generator's Adam optimizers", ge=0, lt=1)
    reset_at: int = opt(
        0,
        "index of the synthesis (from 1, with the warm-up) before which the first layers of each generator are drawn anew; 0: never",
        ge=0,
    )
    adv: Literal["kl", "js"] = opt(
        "kl",
        "divergence of student and teacher in the adversarial term: KL, with a pool only of images that both give the same class (kl), or "
        "Jensen-Shannon at temperature 3 (js)",
    )
    wanted: Literal["drawn", "own"] = opt("drawn", "target classes of the images: random (drawn), or the teacher's predicted class (own)")
    w_bn: float = opt(10.0, "weight of the distance to the teacher's batch-norm statistics", ge=0)
    w_oh: float = opt(0.5, "weight of the cross-entropy to the target classes", ge=0)
    w_adv: float = opt(1.33, "weight of the adversarial term (divergence of student and teacher, maximised)", ge=0)
    w_even: float = opt(0.0, "weight of the negative entropy of the batch's mean class probabilities", ge=0)
    w_act: float = opt(0.0, "weight of the mean absolute penultimate feature of the teacher (maximised)", ge=0)
    w_cr: float = opt(0.0, "weight of the contrastive term (an image and a random part of it against other images)", ge=0)
    w_sbn: float = opt(0.0, "weight of the term that raises the distance to the student's batch-norm statistics", ge=0)
    w_tv: float = opt(0.0, "weight of the total variation of the images", ge=0)
    images: Literal["pool", "fresh"] = opt(
        "pool", "training images of the student: all synthetic images so far (pool), or new ones at each step (fresh)"
    )
    init_pool: str = opt("", "first images of the pool: the pool.npy of another run, or a folder of PNG or JPEG files")
    cache: bool = opt(
        False, "keep the teacher's answers to the pool's images in memory (up to 162 per image); a resumed run queries them again"
    )
    contrast: float = opt(0.0, "fraction of the student's images that are normalised twice (control experiment)", ge=0, le=1)
    eval: bool = opt(True, "read no data set and evaluate nothing")

    def presets(self) -> dict[str, Any]:
        by_teacher = TEACHER_SETTINGS.get(canonical(self.teacher), {})
        by_dataset = DATASET_SETTINGS.get(matching(self.dataset, DATASET_SETTINGS), {})
        start = {"weights_init": "torch"} if canonical(self.model) in ("ResNet18", "ResNet34", "ResNet50") else {}
        return start | by_teacher | by_dataset | STEPS_SETTINGS.get(self.g_steps, {}) | PRESETS[self.preset]

    def validate(self) -> None:
        super().validate()
        if self.generator == "pixels" and (self.meta != "fresh" or self.images != "pool"):
            raise UsageError(
                f"--generator pixels with --meta {self.meta} --images {self.images}: pixels are drawn anew for each synthesis; "
                "use --meta fresh --images pool"
            )
        if self.cache and (self.images != "pool" or self.contrast):
            raise UsageError(
                f"--images {self.images} --contrast {self.contrast:g} with --cache: it needs unchanged images of a pool; "
                "use --images pool --contrast 0"
            )
        if not any(getattr(self, f"w_{name}") for name in TERMS):
            weights = ", ".join(f"--w_{name}" for name in TERMS)
            raise UsageError(f"all weights of the synthesis are 0, so that it has no loss; use one of {weights} above 0")
