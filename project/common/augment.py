"""Augmentation of whole batches on the device, without a loop over images. Each image gets its own crop and its own operations.

Images are floats (B, C, H, W) in [0, 1].
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as V


def crop_flip(x: Tensor, pad: int, flip: bool, which: Tensor) -> Tensor:
    """Returns view number `which` (B,) of each image x (B, C, H, W): shifted by up to `pad` pixels, filled with black, maybe mirrored.

    The view number encodes row shift, column shift (2 pad + 1 values each) and, with `flip`, whether the image is mirrored.
    x is float or uint8; gradients flow through a float x.
    """
    (b, _, h, w), n = x.shape, 2 * pad + 1
    which = which[:, None]
    rows = which % n + torch.arange(h, device=x.device)  # (B, H)
    cols = which // n % n + torch.arange(w, device=x.device)  # (B, W)
    if flip:
        cols = torch.where(which // n**2 == 1, cols.flip(1), cols)
    padded = F.pad(x, (pad,) * 4).permute(0, 2, 3, 1)  # (B, H + 2 pad, W + 2 pad, C)
    return padded[torch.arange(b, device=x.device)[:, None, None], rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


def random_boxes(
    n: int,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    tries: int = 10,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Returns n random crops of images of `size` x `size` as integers (4, n): top, left, height, width.

    The distribution is that of torchvision's RandomResizedCrop: area uniform in `scale` (a fraction of the image), logarithm of the
    aspect ratio uniform in the logarithm of `ratio`. The first of `tries` draws that fits is used, or else the whole image.
    """
    area = size**2 * torch.empty(tries, n, device=device).uniform_(*scale)
    aspect = torch.empty(tries, n, device=device).uniform_(*torch.tensor(ratio).log().tolist()).exp()
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w > 0) & (w <= size) & (h > 0) & (h <= size)
    first = fits.to(torch.uint8).argmax(0, keepdim=True)  # 0 if none fits
    w, h = (torch.where(fits.any(0), v.gather(0, first)[0], float(size)) for v in (w, h))
    top, left = (((size - v + 1) * torch.rand(n, device=device)).floor() for v in (h, w))
    return torch.stack([top, left, h, w]).long()


def cubic(d: Tensor) -> Tensor:
    """Returns Keys' interpolation kernel with a = -1/2 at distances d in pixels, as PIL's bicubic filter."""
    d = d.abs()
    return torch.where(d <= 1, (1.5 * d - 2.5) * d**2 + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2) * (d < 2)


def resampling(start: Tensor, length: Tensor, old: int, new: int, smooth: Tensor) -> Tensor:
    """Returns matrices (B, new, old) that resample `length` (B,) of `old` pixels, from `start` (B,) on, to `new` pixels.

    smooth: bool (B,), bicubic instead of bilinear interpolation. Where length > new, the kernel is length / new times as wide
    (antialiasing, as in PIL).
    """
    index, centres = (torch.arange(n, device=start.device, dtype=torch.float) for n in (old, new))
    start, length = start[:, None].float(), length[:, None].float()
    centres = (centres + 0.5) * length / new - 0.5 + start  # (B, new), position of each new pixel in the old image
    d = (centres[:, :, None] - index) / (length / new).clamp_min(1)[:, :, None]  # (B, new, old)
    weight = torch.where(smooth[:, None, None], cubic(d), (1 - d.abs()).clamp_min(0))
    inside = (index >= start) & (index < start + length)  # (B, old)
    weight = weight * inside[:, None]
    return weight / weight.sum(2, keepdim=True)


def resized_crop(
    x: Tensor, box: Tensor | None = None, mirrored: Tensor | None = None, smooth: Tensor | None = None, size: int = 0
) -> Tensor:
    """Returns the images x (B, C, H, H), each cropped to its box, resized to `size` x `size` (0: H x H) and maybe mirrored.

    box: integers (4, B) as from `random_boxes`. mirrored, smooth: bool (B,); smooth: bicubic instead of bilinear interpolation.
    An argument that is not given is drawn at random; smooth and mirrored then have probability 1/2 (as timm's "random" interpolation).
    """
    (b, _, old, _), device = x.shape, x.device
    box = random_boxes(b, old, device=device) if box is None else box
    mirrored = torch.rand(b, device=device) < 0.5 if mirrored is None else mirrored
    smooth = torch.rand(b, device=device) < 0.5 if smooth is None else smooth
    rows, columns = (resampling(box[i], box[i + 2], old, size or old, smooth) for i in (0, 1))
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    return (rows[:, None] @ x @ columns[:, None].transpose(2, 3)).clamp(0, 1)


# ---- AutoAugment's policy for ImageNet, Cubuk et al. 2019, table 9: pairs of (operation, probability, level from 0 to 10)

POLICY = """Posterize .4 8 Rotate .6 9|Solarize .6 5 AutoContrast .6 5|Equalize .8 8 Equalize .6 3|Posterize .6 7 Posterize .6 6
Equalize .4 7 Solarize .2 4|Equalize .4 4 Rotate .8 8|Solarize .6 3 Equalize .6 7|Posterize .8 5 Equalize 1 2|Rotate .2 3 Solarize .6 8
Equalize .6 8 Posterize .4 6|Rotate .8 8 Color .4 0|Rotate .4 9 Equalize .6 2|Equalize 0 7 Equalize .8 8|Invert .6 4 Equalize 1 8
Color .6 4 Contrast 1 8|Rotate .8 8 Color 1 2|Color .8 8 Solarize .8 7|Sharpness .4 7 Invert .6 8|ShearX .6 5 Equalize 1 9
Color .4 0 Equalize .6 3|Equalize .4 7 Solarize .2 4|Solarize .6 5 AutoContrast .6 5|Invert .6 4 Equalize 1 8
Color .6 4 Contrast 1 8|Equalize .8 8 Equalize .6 3"""
POLICY = [words.split() for words in POLICY.replace("\n", "|").split("|")]
OPERATIONS = sorted({policy[i] for policy in POLICY for i in (0, 3)})
FILL = (129 / 255, 124 / 255, 112 / 255)  # colour outside of the image, for three channels


# RandAugment as in MLKD's released code: two of these operations for each image, each with a strength from the interval, and a grey square
RAND = {"AutoContrast": (0, 1), "Brightness": (0.05, 0.95), "Color": (0.05, 0.95), "Contrast": (0.05, 0.95), "Equalize": (0, 1)}
RAND |= {"Identity": (0, 1), "Posterize": (0, 1), "Rotate": (0, 1), "Sharpness": (0.05, 0.95), "ShearX": (0, 1), "ShearY": (0, 1)}
RAND |= {"Solarize": (0, 1), "TranslateX": (0, 1), "TranslateY": (0, 1)}
BLENDED = ("Brightness", "Color", "Contrast", "Sharpness")  # operations whose interval is that of a factor


def fill_colour(x: Tensor) -> Tensor:
    """Returns FILL as (1, C, 1, 1), or its mean for images x that do not have three channels."""
    return torch.tensor(FILL if x.shape[1] == 3 else [sum(FILL) / 3] * x.shape[1]).to(x.device, non_blocking=True).view(1, -1, 1, 1)


def warp(x: Tensor, strength: Tensor, signs: Tensor, matrix: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns x transformed by the affine matrices (B, 2, 3) that `matrix(strength * signs)` returns, bilinear, filled with FILL."""
    fill = fill_colour(x)
    grid = F.affine_grid(matrix(strength * signs), x.shape, align_corners=False)
    return F.grid_sample(x - fill, grid, align_corners=False) + fill


def rotation(strength: Tensor) -> Tensor:
    """Returns rotation matrices (B, 2, 3) by strength (B,) times 30 degrees."""
    a = strength * (torch.pi / 6)
    zero = torch.zeros_like(a)
    return torch.stack([torch.stack([a.cos(), -a.sin(), zero], 1), torch.stack([a.sin(), a.cos(), zero], 1)], 1)


def shear(strength: Tensor, axis: int = 0) -> Tensor:
    """Returns shear matrices (B, 2, 3) by strength (B,) times 0.3, along x (axis 0) or y (axis 1); the upper or left edge does not move."""
    m = torch.eye(2, 3).repeat(len(strength), 1, 1).to(strength.device, non_blocking=True)
    m[:, axis, 1 - axis] = m[:, axis, 2] = 0.3 * strength
    return m


def shift(strength: Tensor, axis: int) -> Tensor:
    """Returns matrices (B, 2, 3) that shift along x (axis 0) or y (axis 1) by strength (B,) times 0.3 of the image's side."""
    m = torch.eye(2, 3).repeat(len(strength), 1, 1).to(strength.device, non_blocking=True)
    m[:, axis, 2] = 0.6 * strength
    return m


def blend(x: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """Returns other + (0.1 + 1.8 strength) (x - other), clipped to [0, 1]."""
    return torch.lerp(other, x, (0.1 + 1.8 * strength).view(-1, 1, 1, 1)).clamp(0, 1)


def grey(x: Tensor) -> Tensor:
    """Returns images with three equal channels, or x unchanged if it does not have three channels."""
    return V.rgb_to_grayscale(x, 3) if x.shape[1] == 3 else x


def smooth(x: Tensor) -> Tensor:
    """Returns x filtered with weights 1/13, in the middle 5/13, as PIL's SMOOTH; the edge stays. torchvision's waits for a GPU."""
    y = x.clone()
    y[..., 1:-1, 1:-1] = (9 * F.avg_pool2d(x, 3, 1) + 4 * x[..., 1:-1, 1:-1]) / 13
    return y


def posterize(x: Tensor, strength: Tensor) -> Tensor:
    """Returns x with 4 bits per pixel at strength 0, up to 8 bits at strength 1."""
    step = 2.0 ** (4 - (4 * strength).floor()).view(-1, 1, 1, 1)
    return (x * 255 / step + 1e-4).floor() * step / 255


# each operation takes images (b, C, H, W), a strength in [0, 1] (b,), which is the level divided by 10, and signs -1 or 1 (b,)
APPLY = {
    "Rotate": lambda x, strength, signs: warp(x, strength, signs, rotation),
    "ShearX": lambda x, strength, signs: warp(x, strength, signs, shear),
    "Posterize": lambda x, strength, signs: posterize(x, strength),
    "Solarize": lambda x, strength, signs: torch.where(x * 255 >= (256 * strength).floor().view(-1, 1, 1, 1), 1 - x, x),
    "AutoContrast": lambda x, strength, signs: V.autocontrast(x),
    "Equalize": lambda x, strength, signs: V.equalize(x),
    "Invert": lambda x, strength, signs: 1 - x,
    "Color": lambda x, strength, signs: blend(x, grey(x), strength),
    "Contrast": lambda x, strength, signs: blend(x, grey(x).mean((1, 2, 3), keepdim=True).expand_as(x), strength),
    "Sharpness": lambda x, strength, signs: blend(x, smooth(x), strength),
    "Brightness": lambda x, strength, signs: blend(x, torch.zeros_like(x), strength),
    "Identity": lambda x, strength, signs: x,
    "ShearY": lambda x, strength, signs: warp(x, strength, signs, partial(shear, axis=1)),
    "TranslateX": lambda x, strength, signs: warp(x, strength, signs, partial(shift, axis=0)),
    "TranslateY": lambda x, strength, signs: warp(x, strength, signs, partial(shift, axis=1)),
}


def apply_operations(x: Tensor, kind: Tensor, names: Sequence[str], strength: Tensor, signs: Tensor) -> Tensor:
    """Returns the images x (B, C, H, W), each changed by the operation names[kind], or unchanged if its kind is -1.

    kind, strength, signs: (B,), on the CPU, so that nothing waits for the device.
    """
    for k, name in enumerate(names):
        if len(rows := (kind == k).nonzero()[:, 0]):
            rows, *arguments = (v.to(x.device, non_blocking=True) for v in (rows, strength[rows], signs[rows]))
            x = x.index_copy(0, rows, APPLY[name](x[rows], *arguments))
    return x


def random_signs(n: int) -> Tensor:
    """Returns n random signs, -1 or 1."""
    return 1 - 2.0 * (torch.rand(n) < 0.5)


def auto_augment(x: Tensor, noise: float = 0.5) -> Tensor:
    """Returns the images x (B, C, H, W), augmented with AutoAugment's policy for ImageNet.

    Each image gets one of 25 pairs of operations; each operation is applied with its probability. Its level gets normal noise of
    standard deviation `noise` and is clipped to [0, 10].
    """
    table = torch.tensor([[[OPERATIONS.index(p[i]), float(p[i + 1]), float(p[i + 2])] for i in (0, 3)] for p in POLICY])
    drawn = table[torch.randint(len(POLICY), (len(x),))]  # (B, 2, 3)
    for kind, chance, level in (pair.unbind(1) for pair in drawn.unbind(1)):
        strength = (level + noise * torch.randn_like(level)).clamp(0, 10) / 10
        signs = random_signs(len(x))
        x = apply_operations(x, torch.where(torch.rand_like(level) < chance, kind, -1.0), OPERATIONS, strength, signs)
    return x.clamp(0, 1)


def rand_augment(x: Tensor, number: int = 2) -> Tensor:
    """Returns the images x (B, C, H, W), each changed by `number` random operations of RAND, and with a square painted grey.

    The square's side is uniform in [0, 1/2] of the image's; its centre is uniform in the image.
    Source: RandAugment (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719), as MLKD's released code uses it.
    """
    (b, _, h, w), low_high = x.shape, torch.tensor([*RAND.values()])
    blended = torch.tensor([name in BLENDED for name in RAND])
    for _ in range(number):
        kind = torch.randint(len(RAND), (b,))
        low, high = low_high[kind].unbind(1)
        value = low + (high - low) * torch.rand(b)
        x = apply_operations(x, kind, [*RAND], torch.where(blended[kind], (value - 0.1) / 1.8, value), random_signs(b))
    side, centre = torch.rand(b, 1) / 2, torch.rand(2, b, 1)
    rows, columns = (((torch.arange(n) + 0.5) / n - c).abs() < side / 2 for n, c in zip((h, w), centre, strict=True))
    square = (rows[:, None, :, None] & columns[:, None, None, :]).to(x.device, non_blocking=True)
    return torch.where(square, fill_colour(x), x).clamp(0, 1)


def mixup(x: Tensor, y: Tensor, classes: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Returns mixed images (B, C, H, W) and label probabilities (B, K) (mixup, Zhang et al. 2018).

    x' is the batch in reverse order: lambda x + (1 - lambda) x', with one lambda ~ Beta(alpha, alpha) per batch; labels y (B,) likewise.
    """
    lam = torch.distributions.Beta(alpha, alpha).sample().item()
    y = F.one_hot(y, classes).float()
    return torch.lerp(x.flip(0), x, lam), torch.lerp(y.flip(0), y, lam)
