"""serve: classifies images over HTTP with a trained model, as a prediction API does, and counts the images of each API key.
Open Inference Protocol V2 (KServe), and the task image-classification of Hugging Face's inference API.

    python project/serve.py --teacher ResNet32 --dataset MNIST --response hard --port 8000
    python project/serve.py --teacher VGG13_BN --teacher_path my.pth --dataset CIFAR10 --keys keys.toml

Routes, keys and limits: docs/serving.md. No image of the data set is read.
"""

from common.cli import cli, say

from dataclasses import dataclass

from common.datasets import DATASETS
from common.models import MODELS
from common.options import parse
from common.serving.options import ServingOptions
from common.serving.server import Server, listen
from common.serving.service import Service


@dataclass
class Args(ServingOptions):
    pass


def main(argv=None):
    there_is = f"data sets: {', '.join(DATASETS)}, folder:PATH\nmodels: {', '.join(MODELS)}, torchvision:NAME, timm:NAME, FILE.py:CLASS"
    args = parse(Args, argv, "project/serve.py", there_is)
    sock = listen(args.host, args.port)  # before the model, which takes longer
    Server(Service(args), sock, say).serve_until_stopped()


if __name__ == "__main__":
    cli(main)
