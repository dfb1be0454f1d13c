"""Feature maps of a net's stages, whatever its family: of each height that its maps have, the last one."""

import torch

from ..utils import UsageError


class Stages:
    """`with stages: net(x)` leaves in `stages.seen` the maps (B, C, H, W), the largest first; `shapes` are their (C, H, W).

    They are found in one pass over an image of `shape` (C, H, W): for each height, but 1 where there are others, the last output of the
    outermost blocks, where these have three heights; else of blocks further in, and at last of any layer.
    """

    def __init__(self, net, shape, device):
        outputs, training = [], net.training  # (depth, is a block, height, module, (C, H, W)) in the order of their ends

        def note(name, module):
            def hook(module, inputs, output):
                if isinstance(output, torch.Tensor) and output.dim() == 4:
                    block = any(True for _ in module.children())
                    outputs.append((name.count("."), block, output.shape[2], module, tuple(output.shape[1:])))

            return module.register_forward_hook(hook)

        hooks = [note(name, m) for name, m in net.named_modules() if name]
        with torch.no_grad():
            net.eval()(torch.zeros(1, *shape, device=device))
        net.train(training)
        for hook in hooks:
            hook.remove()
        for depth in (*range(4), None):
            chosen = {h: (m, of) for d, block, h, m, of in outputs if depth is None or (d <= depth and block)}
            if len(chosen) >= 3:
                break
        if not chosen:
            raise UsageError(f"{type(net).__name__} has no feature maps, so that no stages of it can be compared; take a base of logits")
        order = sorted((h for h in chosen if h > 1 or len(chosen) == 1), reverse=True)
        self.modules, self.shapes = zip(*(chosen[h] for h in order), strict=True)
        self.seen = []

    def __enter__(self):
        self.seen = [None] * len(self.modules)

        def keep(i):
            def hook(module, inputs, output):
                self.seen[i] = output

            return hook

        self.hooks = [m.register_forward_hook(keep(i)) for i, m in enumerate(self.modules)]

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
