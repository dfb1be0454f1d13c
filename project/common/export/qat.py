"""Quantisation-aware training: the student learns to give its own float logits with weights and activations of 8 bits.

Jacob et al. 2018, https://arxiv.org/abs/1712.05877, with the float student as the teacher: no labels, and no query of the real teacher.
The scheme is that of the 8-bit files: activations with one range per tensor, signed symmetric weights. Biases are floats.
"""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn as nn
from torch import Tensor, fx
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..batches import Batches
from ..cli import say
from ..losses import kl
from .measured import per_channel_helps

aten = torch.ops.aten
WEIGHTED = (aten.conv2d.default, aten.linear.default)
CLAMPS = (aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default)  # they run inside the operator before them
BATCH = 64


def rounded(w: Tensor, per_channel: bool) -> Tensor:
    """Weights w (K, ...) on a grid of 255 values from -max |w| to max |w|, where the maximum is that of w or of each of its K parts.

    The gradient is that of the identity.
    """
    if per_channel:
        scale = w.detach().abs().flatten(1).amax(1).clamp(min=1e-12) / 127
        return torch.fake_quantize_per_channel_affine(w, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -127, 127)
    scale = w.detach().abs().max().clamp(min=1e-12) / 127
    return torch.fake_quantize_per_tensor_affine(w, scale, torch.zeros_like(scale, dtype=torch.int32), -127, 127)


class Simulated(fx.Interpreter):
    """A network as its 8-bit file computes it: images (N, C, H, W) -> logits (N, K), with gradients.

    net: the module of a torch.export program. ranges: {node: (smallest, largest value)} of its activations, which `observing` fills.
    """

    def __init__(self, net: fx.GraphModule, per_channel: bool):
        super().__init__(net)
        self.net, self.per_channel, self.ranges, self.watch = net, per_channel, {}, False
        logits = net.graph.output_node().all_input_nodes
        inside = {n for n in net.graph.nodes if len(n.users) == 1 and next(iter(n.users)).target in CLAMPS}
        kinds = ("placeholder", "call_function")
        self.activations = {n for n in net.graph.nodes if n.op in kinds} - inside - set(logits)

    def __call__(self, x: Tensor) -> Tensor:
        return self.run(x)

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if node not in self.activations or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if self.watch:
            low, high = self.ranges.get(node, (value.new_zeros(()),) * 2)
            self.ranges[node] = torch.minimum(low, value.min()), torch.maximum(high, value.max())
            return value
        low, high = self.ranges[node]
        scale = ((high - low) / 255).clamp(min=1e-12)
        return torch.fake_quantize_per_tensor_affine(value, scale, (-low / scale).round().int(), 0, 255)

    def call_function(self, target: Callable, args: tuple, kwargs: dict) -> object:
        if target in WEIGHTED:
            args = (args[0], rounded(args[1], self.per_channel), *args[2:])
        return super().call_function(target, args, kwargs)

    def observe(self, x: Tensor) -> None:
        """Sets the ranges of the activations to the smallest and largest values on images x (n, C, H, W), and 0."""
        self.watch, self.ranges = True, {}
        with torch.no_grad():
            for part in x.split(BATCH):
                self(part)
        self.watch = False

    def evaluate(self, x: Tensor, s: Tensor) -> float:
        """Mean KL, in nats, from logits s (n, K) of images x (n, C, H, W); sets the ranges to those of x."""
        self.observe(x)
        with torch.no_grad():
            return kl(torch.cat([self(part) for part in x.split(BATCH)]), s).item()

    def weights(self) -> list[nn.Parameter]:
        """The parameters that are rounded to 8 bits."""
        return [tensor_of(self.net, n.args[1]) for n in self.net.graph.nodes if n.target in WEIGHTED]


def folded(net: fx.GraphModule) -> fx.GraphModule:
    """`net`, the module of a program, with each batch norm that follows a convolution of its own in that convolution's weights."""
    for node in [n for n in net.graph.nodes if n.target is aten.batch_norm.default]:
        conv = node.args[0]
        if conv.target is not aten.conv2d.default or len(conv.users) > 1:
            continue
        gamma, beta, mean, var = (tensor_of(net, n) for n in node.args[1:5])
        weight, bias = (tensor_of(net, n) for n in (*conv.args, None)[1:3])
        parts = fuse_conv_bn_weights(weight, bias, mean, var, node.args[7], gamma, beta)
        names = [f"folded_{conv.name}_{kind}" for kind in ("weight", "bias")]
        for name, value in zip(names, parts, strict=True):
            net.register_parameter(name, nn.Parameter(value.detach().clone()))
        with net.graph.inserting_before(conv):
            conv.args = (conv.args[0], *(net.graph.get_attr(name) for name in names), *conv.args[3:])
        node.replace_all_uses_with(conv)
        net.graph.erase_node(node)
    net.graph.eliminate_dead_code()
    net.delete_all_unused_submodules()
    net.recompile()
    return net


def tensor_of(net: fx.GraphModule, node: fx.Node | None) -> Tensor | None:
    """The parameter or buffer that a node of a graph reads."""
    if node is None:
        return None
    value = net
    for name in node.target.split("."):
        value = getattr(value, name)
    return value


def train(net: fx.GraphModule, x: Tensor, s: Tensor, epochs: int, lr: float, seed: int) -> tuple[fx.GraphModule, dict]:
    """(a copy of `net` that loses less in 8 bits, with rounded weights and no batch norm; what was done).

    net: the module of a program of torch.export, normalised images (N, C, H, W) -> logits (N, K); it is not changed. x: images
    (n, C, H, W). s: the float student's logits (n, K) of x. Each epoch measures the ranges of the activations anew. Adam; the learning
    rate falls from `lr` to 0 along a cosine. The weights are those of the epoch with the lowest KL on x; epoch 0 is `net`.
    """
    torch.manual_seed(seed)
    net = folded(copy.deepcopy(net))
    tensor, channel = (Simulated(net, per_channel) for per_channel in (False, True))
    before = [simulated.evaluate(x, s) for simulated in (tensor, channel)]
    per_channel = per_channel_helps(*before)
    simulated, best = channel if per_channel else tensor, before[per_channel]
    optimizer, batches = torch.optim.Adam(net.parameters(), lr, fused=True), Batches(x, s, size=BATCH)
    epoch_of_best, weights = 0, copy.deepcopy(net.state_dict())
    for epoch in range(epochs):
        for step, (images, logits) in enumerate(batches):
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * (epoch + step / len(batches)) / epochs))
            optimizer.zero_grad()
            kl(simulated(images), logits).backward()
            optimizer.step()
        if (now := simulated.evaluate(x, s)) < best:
            best, epoch_of_best, weights = now, epoch + 1, copy.deepcopy(net.state_dict())
    net.load_state_dict(weights)
    for weight in simulated.weights():
        weight.data = rounded(weight.data, per_channel)
    first = before[per_channel]
    say(f"quantisation-aware training on {len(x):,} images: KL {first:.2g} -> {best:.2g} nats (epoch {epoch_of_best} of {epochs})")
    found = {"epochs": epochs, "best_epoch": epoch_of_best, "lr": lr, "images": len(x), "kl_before": first, "kl_after": best}
    return net.requires_grad_(False), found
