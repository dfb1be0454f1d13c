"""What the server of fuzz_process imports before it forks: all scripts, and what they import late."""

import importlib

from fuzz_process import SCRIPTS

LATE = ("matplotlib.pyplot", "scipy.stats", "sklearn.datasets", "torch._dynamo", "torch.utils.tensorboard")
for name in (*LATE, *SCRIPTS):
    importlib.import_module(name)
importlib.import_module("torch").set_num_threads(1)
importlib.import_module("common.models").build("ResNet8", 10, (1, 8, 8))
