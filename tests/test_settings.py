"""The settings of presets and few-shot defaults against the released ones, so that none drifts unseen.

Each row: where the values stand, the command line that stands for it, and the values. What is converted says how.
"""

import importlib

import pytest

from common.options import parse

MDISTILLER = "megvii-research/mdistiller: mdistiller/engine/cfg.py, configs/cifar100"
TRAINING = {
    "batch_size": 64,
    "epochs": 240,
    "milestones": "150,180,210",
    "gamma": 0.1,
    "weight_decay": 5e-4,
    "momentum": 0.9,
    "optimizer": "sgd",
}
TRAINING |= {"nesterov": False, "decay": "all", "augment": "crop_flip", "normalize": "dataset", "lr": 0.05}
STUDENT = ["--teacher", "ResNet56", "--model", "ResNet20"]
GDA_CODE = "zhiweihu1103/Logit-Distillation-GDA: Image Classification/train.sh, train.py, configs/cifar_v0.yaml"
FEWSHOT_CODE = "zhiweihu1103/Logit-Distillation-GDA: Few-shot Learning/train_classifier.py, train_meta.py, config"
DATAFREE = "zju-vipa/Fast-Datafree: datafree_kd.py, datafree/synthesis, scripts/{}_cifar.sh"
CIFAR = ["--dataset", "CIFAR10", "--teacher", "WRN40_2", "--model", "WRN16_1"]
SHARED = {"batch_size": 256, "ep_steps": 400, "lr": 0.1, "weight_decay": 1e-4, "momentum": 0.9, "schedule": "cosine"}
LATEST = SHARED | {"g_steps": 1, "lr_g": 1e-3, "lr_z": 0, "beta2": 0.999, "augment": "none", "temperature": 1, "warmup": 0, "meta": "none"}
LATEST |= {"images": "fresh", "w_cr": 0, "latent": 256, "generator": "single"}
POOL = SHARED | {"kd_steps": 400, "augment": "crop_flip", "temperature": 20, "images": "pool", "w_even": 0, "w_act": 0}

RELEASED = [
    (MDISTILLER, "GDA", ["--preset", "mdistiller", *STUDENT], TRAINING | {"w_gt": 0.1, "w_kd": 0.9, "temperature": 4}),
    (MDISTILLER, "GDA", ["--preset", "mdistiller", "--base", "dkd", *STUDENT],
     TRAINING | {"w_gt": 1, "w_kd": 1, "temperature": 4, "dkd_beta": 2, "kd_warmup": 20}),
    (MDISTILLER, "GDA", ["--preset", "mdistiller", "--base", "dkd", "--teacher", "VGG13_BN", "--model", "VGG8_BN"], {"dkd_beta": 6}),
    (MDISTILLER, "GDA", ["--preset", "mdistiller", "--base", "dkd", "--teacher", "ResNet32x4", "--model", "ShuffleNetV1"],
     {"dkd_beta": 8, "lr": 0.01}),
    (MDISTILLER, "GDA", ["--preset", "mdistiller", "--base", "rkd", "--response", "inside", *STUDENT], TRAINING | {"w_gt": 1, "w_kd": 1}),
    (MDISTILLER, "GDA", ["--preset", "mdistiller", "--base", "reviewkd", "--response", "inside", *STUDENT],
     TRAINING | {"w_gt": 1, "w_kd": 1, "kd_warmup": 20}),
    ("Jin-Ying/Multi-Level-Logit-Distillation: mdistiller/engine/cfg.py, configs/cifar100/ours/res56_res20.yaml",
     "GDA", ["--preset", "mdistiller", "--base", "mlkd", *STUDENT],
     TRAINING | {"lr": 0.025, "w_gt": 0.1, "w_kd": 0.9, "temperature": 4, "views": "2", "mlkd_class": 0.5}),
    ("zju-SWJ/RLD: mdistiller/engine/cfg.py, configs/cifar100/rld", "GDA",
     ["--preset", "mdistiller", "--base", "rld", "--teacher", "ResNet32x4", "--model", "ResNet8x4"],
     TRAINING | {"w_gt": 1, "w_kd": 1, "temperature": 4, "dkd_beta": 8, "kd_warmup": 20}),
    (GDA_CODE + "; w_sk: 0.1 times a sum over 128 images", "GDA", ["--preset", "timm", *STUDENT],
     {"lr": 0.2, "lr_min": 2e-3, "lr_warmup": 10, "LR_START": 1e-4, "schedule": "cosine", "epochs": 240, "nesterov": True, "momentum": 0.9,
      "weight_decay": 5e-4, "decay": "weights", "augment": "resized_crop", "zoom": True, "normalize": "dataset", "batch_size": 128,
      "w_gt": 2, "w_kd": 1, "temperature": 4, "w_fr": 0.02, "w_sk": 0.1 * 128}),
    (GDA_CODE, "GDA", ["--preset", "timm", "--base", "dkd", *STUDENT], {"dkd_beta": 1, "kd_warmup": 0, "temperature": 4}),
    (GDA_CODE + "; six GPUs with 128 images each", "GDA", ["--preset", "parity", "--base", "dkd", *STUDENT],
     {"dkd_beta": 1, "kd_warmup": 0, "batch_size": 768, "ranks": 6, "sk_tolerance": 0, "w_sk": 12.8, "w_fr": 0.02, "lr": 0.2}),
    (GDA_CODE, "GDA", ["--base", "augconf"], {"RAMP": 0.3, "FIRST_EPOCH": 0, "alpha_max": 0.5, "dkd_beta": 1}),
    (GDA_CODE, "GDA", ["--base", "adaptconf"], {"ADAPTCONF_RAMP": 0, "SOFTNESS": 0.5}),
    (FEWSHOT_CODE + "; w_sk: 0.0008 times a sum over 128 images, rounded", "fewshot_classifier", [],
     {"lr": 0.1, "epochs": 100, "batch_size": 128, "weight_decay": 5e-4, "w_gt": 1, "w_kd": 1, "w_sk": 0.1, "w_fr": 0.1, "temperature": 1}),
    (FEWSHOT_CODE, "fewshot_classifier", ["--base", "dkd"], {"dkd_beta": 0.5, "kd_warmup": 0}),
    (FEWSHOT_CODE, "fewshot_classifier", ["--base", "adaptconf"], {"temperature": 10, "SOFTNESS": 8, "ADAPTCONF_RAMP": 0.25, "FIRST_EPOCH": 1}),
    (FEWSHOT_CODE + "; w_sk: the command line's 0.1 times a sum over 4 x 75 queries", "fewshot_meta", [],
     {"w_sk": 0.1 * 4 * 75, "w_fr": 0.1, "lr": 1e-3, "epochs": 20, "steps": 200, "episodes": 4, "shot": 1, "way": 5, "query": 15}),
    (DATAFREE.format("fast"), "AEAHL", ["--preset", "fastdfkd", *CIFAR],
     POOL | {"lr": 0.2, "g_steps": 10, "lr_g": 2e-3, "lr_z": 0.01, "meta": "fomaml", "warmup": 20, "reset_at": 140, "generator": "single",
             "w_adv": 1.1, "w_oh": 0.4, "w_bn": 10, "w_cr": 0, "latent": 256, "adv": "kl"}),
    (DATAFREE.format("fast"), "AEAHL", ["--preset", "fastdfkd", "--g_steps", "2", "--teacher", "VGG11_BN"],
     {"lr_g": 5e-3, "lr_z": 0.015, "w_adv": 1, "w_oh": 0.5}),
    (DATAFREE.format("fast"), "AEAHL", ["--preset", "fastdfkd", "--g_steps", "5", "--teacher", "ResNet34"],
     {"lr_g": 3e-3, "lr_z": 0.01, "w_adv": 1.33, "w_oh": 0.5}),
    (DATAFREE.format("cmi"), "AEAHL", ["--preset", "cmi", *CIFAR],
     POOL | {"g_steps": 200, "lr_g": 1e-3, "lr_z": 1e-3, "meta": "fresh", "warmup": 0, "generator": "single", "w_adv": 0.5, "w_bn": 1, "w_oh": 1,
             "w_cr": 0.8, "latent": 256, "adv": "kl", "beta2": 0.999, "reset_at": 0}),
    (DATAFREE.format("deepinv") + "; w_sbn: 10 times 0.001; w_tv: zju-vipa/CMI", "AEAHL", ["--preset", "adi", *CIFAR],
     POOL | {"g_steps": 1000, "lr_g": 0.1, "beta2": 0.99, "meta": "fresh", "warmup": 0, "generator": "pixels", "w_adv": 1, "w_bn": 10, "w_oh": 1,
             "w_cr": 0, "adv": "js", "w_sbn": 0.01, "w_tv": 1e-3}),
    (DATAFREE.format("dfq"), "AEAHL", ["--preset", "dfq", *CIFAR],
     LATEST | {"kd_steps": 10, "w_adv": 1, "w_bn": 1, "w_oh": 1, "w_even": 20, "w_act": 0, "wanted": "own"}),
    (DATAFREE.format("zskt"), "AEAHL", ["--preset", "zskt", *CIFAR],
     LATEST | {"kd_steps": 5, "w_adv": 1, "w_bn": 0, "w_oh": 0, "w_even": 0, "w_act": 0}),
    (DATAFREE.format("dafl"), "AEAHL", ["--preset", "dafl", *CIFAR],
     LATEST | {"kd_steps": 5, "latent": 512, "w_adv": 0, "w_bn": 0, "w_oh": 1, "w_even": 20, "w_act": 1e-3, "wanted": "own"}),
    ("sunyafeng1996/AEAHL-RG: base_configs.py, main.py", "AEAHL", ["--dataset", "CIFAR10", "--teacher", "ResNet34", "--model", "ResNet18"],
     {"batch_size": 256, "epochs": 400, "warmup": 20, "kd_steps": 400, "ep_steps": 400, "lr": 0.2, "weight_decay": 1e-4, "temperature": 20,
      "g_steps": 10, "lr_g": 2e-3, "lr_z": 0.01, "latent": 256, "ngf": 64, "meta": "fomaml", "w_bn": 10, "w_adv": 1.33, "w_oh": 0.5,
      "alpha": 0.9, "beta": 0.1, "pa": 0.001, "weights_init": "torch", "reset_at": 0}),
]  # fmt: skip


@pytest.mark.parametrize("source, script, argv, settings", RELEASED, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_setting_is_the_released_one(source, script, argv, settings):
    args = parse(importlib.import_module(script).Args, argv)
    found = {k: getattr(args, k) for k in settings}
    assert found == {k: pytest.approx(v) if isinstance(v, float) else v for k, v in settings.items()}, source


def test_what_is_given_precedes_a_preset():
    for script, argv in (("GDA", ["--preset", "mdistiller"]), ("AEAHL", ["--preset", "dfq"])):
        assert parse(importlib.import_module(script).Args, [*argv, "--lr", "0.3"]).lr == 0.3
