"""The options of data-free methods in AEAHL-RG's frame, and the presets of those that it is compared with."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..models import canonical
from ..options import StudentOptions, opt
from ..utils import UsageError, matching

TERMS = ("bn", "oh", "adv", "even", "act", "cr")  # of a synthesis; w_NAME weighs each
SINGLE = {"generator": "single", "lr": 0.1}
LATEST = SINGLE | {"meta": "none", "g_steps": 1, "lr_g": 1e-3, "lr_z": 0.0, "images": "fresh", "warmup": 0}
ANEW = SINGLE | {"meta": "fresh"}
PRESETS = {  # the settings of CMI's and FastDFKD's scripts, for methods of 2112.15278, 2105.08584, 1912.08795 (DeepInversion with its
    # adversarial term), 2005.04136, 1905.09768, 1904.01186
    "aeahl": {},
    "released": {"twins": True, "aea_compat": True},
    "fastdfkd": {"generator": "single"},
    "cmi": ANEW | {"g_steps": 200, "lr_g": 1e-3, "w_adv": 0.5, "w_bn": 1.0, "w_oh": 1.0, "w_cr": 0.8},
    "adi": ANEW | {"generator": "pixels", "g_steps": 1000, "lr_g": 0.1, "w_adv": 1.0, "w_oh": 1.0},
    "dfq": LATEST | {"kd_steps": 10, "w_adv": 1.0, "w_bn": 1.0, "w_oh": 1.0, "w_even": 20.0, "wanted": "own"},
    "zskt": LATEST | {"kd_steps": 5, "w_adv": 1.0, "w_bn": 0.0, "w_oh": 0.0},
    "dafl": LATEST | {"kd_steps": 5, "w_adv": 0.0, "w_bn": 0.0, "w_oh": 1.0, "w_even": 20.0, "w_act": 1e-3, "wanted": "own"},
}
OF_TEACHER = {"VGG11_BN": {"w_adv": 1.0}, "WRN40_2": {"w_adv": 1.1, "w_oh": 0.4}}
OF_STEPS = {2: {"lr_g": 5e-3, "lr_z": 0.015}, 5: {"lr_g": 3e-3}}  # FastDFKD-2 and -5
MIRRORED = {"augment": "crop_flip"}
OF_DATASET = {"CIFAR10": MIRRORED, "CIFAR100": MIRRORED}
OF_DATASET |= {"TinyImageNet": MIRRORED | {"g_steps": 50}, "ImageNet": MIRRORED | {"g_steps": 50, "batch_size": 64}}


@dataclass
class SynthesisOptions(StudentOptions):
    GROUP: ClassVar = "method"
    NEEDS: ClassVar = "inside"
    DATA: ClassVar = False

    preset: Literal["aeahl", "released", "fastdfkd", "cmi", "adi", "dfq", "zskt", "dafl"] = opt(
        "aeahl", "settings of a method, for options that are not given; released: AEAHL-RG as its code runs"
    )
    response: str = "inside"
    epochs: int = opt(400, "number of epochs of the student, after the warm-up")
    batch_size: int = opt(256, "batch size in images, of the student and of a synthesis", ge=2)
    lr: float = opt(0.2, "learning rate of the student")
    weight_decay: float = 1e-4
    schedule: Literal["multistep", "cosine"] = "cosine"
    ep_steps: int = opt(400, "number of steps of the student in an epoch", ge=1)
    kd_steps: int = opt(400, "number of steps of the student between two syntheses", ge=1)
    warmup: int = opt(20, "number of syntheses before the student's first step (all but the last without the adversarial term)", ge=0)
    generator: Literal["rg", "single", "pixels"] = opt(
        "rg", "generator: two nets and a decoder (rg), one net (single), or the pixels themselves (pixels)"
    )
    latent: int = opt(256, "width of the generator's noise", ge=1)
    ngf: int = opt(64, "channels of a generator before its last convolution", ge=1)
    meta: Literal["fomaml", "reptile", "none", "fresh"] = opt(
        "fomaml", "update of the generator after a synthesis: fomaml, reptile; none: trained directly; fresh: new each time"
    )
    g_steps: int = opt(10, "number of steps in a synthesis", ge=1)
    lr_g: float = opt(2e-3, "learning rate of the generator in a synthesis (Adam)", gt=0)
    lr_g_meta: float = opt(0.0, "learning rate of the generator between syntheses; 0: g_steps * lr_g", ge=0)
    lr_z: float = opt(0.01, "learning rate of the latents", ge=0)
    wanted: Literal["drawn", "own"] = opt("drawn", "target classes of the images: drawn at random, or the teacher's own top class (own)")
    w_bn: float = opt(10.0, "weight of the distance to the teacher's batch-norm statistics", ge=0)
    w_oh: float = opt(0.5, "weight of the cross-entropy to the target classes", ge=0)
    w_adv: float = opt(1.33, "weight of the adversarial term (divergence of student and teacher, maximised)", ge=0)
    w_even: float = opt(0.0, "weight of the negative entropy of the batch's mean answer", ge=0)
    w_act: float = opt(0.0, "weight of the penultimate features' size (maximised)", ge=0)
    w_cr: float = opt(0.0, "weight of the contrastive term between two views of an image and other images", ge=0)
    images: Literal["pool", "fresh"] = opt(
        "pool", "training images of the student: all images made so far (pool), or new ones at each step (fresh)"
    )
    init_pool: str = opt("", "images to start the pool with: pool.npy of another run, or a folder of PNG or JPEG files")
    cache: bool = opt(False, "keep the teacher's answers to the pool's images in memory (up to 162 per image); a killed run asks again")
    contrast: float = opt(0.0, "fraction of the student's images that are normalised twice (a control experiment)", ge=0, le=1)
    eval: bool = opt(True, "read no data set and evaluate nothing")

    def presets(self) -> dict[str, Any]:
        of_dataset = OF_DATASET.get(matching(self.dataset, OF_DATASET), {})
        return OF_TEACHER.get(canonical(self.teacher), {}) | of_dataset | OF_STEPS.get(self.g_steps, {}) | PRESETS[self.preset]

    def validate(self) -> None:
        super().validate()
        if self.generator == "pixels" and (self.meta != "fresh" or self.images != "pool"):
            raise UsageError("--generator pixels has nothing that lasts: it goes with --meta fresh --images pool")
        if self.cache and (self.images != "pool" or self.contrast):
            raise UsageError("--cache keeps answers to the pool's images as they are; it goes with --images pool and --contrast 0")
        if not any(getattr(self, f"w_{name}") for name in TERMS):
            raise UsageError("all weights of the synthesis are 0, so that it has nothing to go by; give --w_bn or another")
