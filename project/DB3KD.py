"""DB3KD: trains the student on soft labels, computed from distances to the decision boundaries of a teacher that returns classes only.
Wang 2021, https://arxiv.org/abs/2106.03310

    python project/DB3KD.py --teacher ResNet32 --model ResNet8
    python project/DB3KD.py --dataset MNIST --img_size 28 --teacher LeNet5 --model LeNet5_half --sr_mode mbd --budgets 300,1000
    python project/DB3KD.py ... --model LeNet5_fifth --sr_mode mbd --budgets 300,1000 --at 300 --transfer .../transfer.safetensors

Differs:
  - Logits fall linearly with the distance, as a teacher's logits do to first order (paper: inverse of the distance, --form inverse
    --scale none). The paper's labels are no better than label smoothing here (--sr_mode even; see docs/methods/db3kd.md).
  - Distances are divided by their median, so that the temperature has the same meaning on every data set.
  - The class of an image is the teacher's response, not the label of the data set, also in the cross-entropy.
  - Rays from an image go to the 8 nearest images that the teacher assigns to the other class (paper: to 200 random images with this
    label; --preset released).
  - The search follows the boundary on arcs, in low-frequency cosines first (paper: --algorithm signopt --basis full).
  - A budget applies to each pair of an image and another class.
  - The KL term is a mean over the batch with factor t^2 and weight 1.28, which equals the released sum at batch size 512.
  - With --query_budget the classes are bought first. The rest of the budget measures distances, image by image. The other images keep
    their distance of --sr_mode sd.
"""

from common.cli import cli

from dataclasses import dataclass

from common.db3kd.labels import SoftLabelOptions, max_label_queries, soft_label_loss, soft_labels_of
from common.run import start


@dataclass
class Args(SoftLabelOptions):
    pass


def main(argv=None):
    run = start(Args, argv)
    n = len(run.resident(run.queryable))
    run.teacher.expect(n + n * max_label_queries(run.args, run.data.classes))
    bought = run.buy(run.random_plan(n))

    def loss(x, t, logits):  # x: images (B, C, H, W), t: the teacher's classes, one-hot (B, K), logits: soft labels (B, K)
        return soft_label_loss(run.args, run.student(x), t, logits)

    run.fit(run.batches(bought, soft_labels_of(run, bought)), loss, repeatable=True)
    return run.finish()


if __name__ == "__main__":
    cli(main)
