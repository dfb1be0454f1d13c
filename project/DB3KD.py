"""DB3KD: the teacher answers with a class only; how far an image is from its other classes tells what else the teacher sees in it.
Wang 2021, https://arxiv.org/abs/2106.03310

    python project/DB3KD.py --teacher ResNet32 --model ResNet8
    python project/DB3KD.py --dataset MNIST --img_size 28 --teacher LeNet5 --model LeNet5_half --sr_mode mbd --budgets 300,1000
    python project/DB3KD.py ... --model LeNet5_fifth --sr_mode mbd --budgets 300,1000 --at 300 --transfer .../transfer.safetensors

Differs: logits fall in proportion to the distance, as a teacher's do to first order. The paper's are its inverse (--form inverse --scale
none), which here does no better than label smoothing (--sr_mode even; README). Distances are divided by their median, so that the
temperature means the same on every data set. An image's own class is the teacher's answer, not the data set's label, also in the
cross-entropy. Rays go to the 8 nearest images that the teacher itself calls by the other class (paper: 200 random ones by their labels:
--pick random --candidates 200). The boundary is followed on arcs, in slow cosines first (paper: --algorithm signopt --basis full), and a
budget is each pair's own. The KL term is a mean over the batch with t^2 and the weight 1.28, which equals the released sum at batch
512. With --query_budget, classes come first; what is left finds distances, image by image, and the others keep that of sd.
"""

from dataclasses import dataclass

from common.db3kd.labels import LabelOptions, label_loss, labels
from common.run import start
from common.utils import cli


@dataclass
class Args(LabelOptions):
    pass


def main(argv=None):
    run = start(Args, argv)
    bought = run.buy(run.random_plan(len(run.resident(run.queryable))))

    def loss(x, t, logits):  # t: the teacher's classes, one-hot
        return label_loss(run.args, run.student(x), t, logits)

    run.fit(run.batches(bought, labels(run, bought)), loss)
    return run.finish()


if __name__ == "__main__":
    cli(main)
