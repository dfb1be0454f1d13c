"""Augmentation of whole batches on the device: each image has its own crop, its own operations, and there is no loop over images.

Images are floats (B, C, H, W) in [0, 1] here; a uint8 image's values are kept to within rounding.
"""

import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as V


def crop_flip(x, pad, flip, which):
    """View number `which` (B,) of each image: shifted by up to `pad` pixels (black comes in), mirrored where that and `flip` say so.

    The number's digits: row shift, column shift (2 pad + 1 each), mirrored. One gather for the batch; a float x keeps its gradient.
    """
    (b, _, h, w), n = x.shape, 2 * pad + 1
    which = which[:, None]
    rows = which % n + torch.arange(h, device=x.device)  # (B, H)
    cols = which // n % n + torch.arange(w, device=x.device)  # (B, W)
    if flip:
        cols = torch.where(which // n**2 == 1, cols.flip(1), cols)
    padded = F.pad(x, (pad,) * 4).permute(0, 2, 3, 1)  # (B, H + 2 pad, W + 2 pad, C)
    return padded[torch.arange(b, device=x.device)[:, None, None], rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


def boxes(n, size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), tries=10, device="cpu"):
    """(top, left, height, width) of n random crops, integers (4, n), as torchvision's RandomResizedCrop draws them for a square image:
    the area evenly from `scale`, the aspect evenly in its logarithm; the first of `tries` that fits, else the whole image."""
    area = size**2 * torch.empty(tries, n, device=device).uniform_(*scale)
    aspect = torch.empty(tries, n, device=device).uniform_(*torch.tensor(ratio).log().tolist()).exp()
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w > 0) & (w <= size) & (h > 0) & (h <= size)
    first = fits.to(torch.uint8).argmax(0, keepdim=True)  # 0 where none does
    w, h = (torch.where(fits.any(0), v.gather(0, first)[0], float(size)) for v in (w, h))
    top, left = (((size - v + 1) * torch.rand(n, device=device)).floor() for v in (h, w))
    return torch.stack([top, left, h, w]).long()


def cubic(d):
    """Keys' kernel with a = -1/2, PIL's bicubic."""
    d = d.abs()
    return torch.where(d <= 1, (1.5 * d - 2.5) * d**2 + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2) * (d < 2)


def resampling(start, length, size, smooth):
    """Matrices (B, size, size) that stretch `length` pixels from `start` (B,) over all: bilinear, bicubic where `smooth` (B,) says so."""
    index = torch.arange(size, device=start.device, dtype=torch.float)
    start, length = start[:, None].float(), length[:, None].float()
    centres = (index + 0.5) * length / size - 0.5 + start  # (B, size), where each new pixel lies
    d = centres[:, :, None] - index  # (B, size, size)
    weight = torch.where(smooth[:, None, None], cubic(d), (1 - d.abs()).clamp_min(0))
    inside = (index >= start) & (index < start + length)  # (B, size)
    weight = weight * inside[:, None]
    return weight / weight.sum(2, keepdim=True)


def resized_crop(x, box=None, mirrored=None, smooth=None):
    """Images x (B, C, H, H), each cropped to its box (4, B) and stretched to H x H, mirrored where `mirrored` (B,); all drawn by default.

    smooth: bicubic instead of bilinear (B,), drawn evenly by default as timm's «random» interpolation.
    """
    (b, _, size, _), device = x.shape, x.device
    box = boxes(b, size, device=device) if box is None else box
    mirrored = torch.rand(b, device=device) < 0.5 if mirrored is None else mirrored
    smooth = torch.rand(b, device=device) < 0.5 if smooth is None else smooth
    rows, columns = resampling(box[0], box[2], size, smooth), resampling(box[1], box[3], size, smooth)
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    return (rows[:, None] @ x @ columns[:, None].transpose(2, 3)).clamp(0, 1)


# ---- AutoAugment's policy of ImageNet, Cubuk et al. 2019, table 9: (operation, probability, level of 10), two in a row

POLICY = """Posterize .4 8 Rotate .6 9|Solarize .6 5 AutoContrast .6 5|Equalize .8 8 Equalize .6 3|Posterize .6 7 Posterize .6 6
Equalize .4 7 Solarize .2 4|Equalize .4 4 Rotate .8 8|Solarize .6 3 Equalize .6 7|Posterize .8 5 Equalize 1 2|Rotate .2 3 Solarize .6 8
Equalize .6 8 Posterize .4 6|Rotate .8 8 Color .4 0|Rotate .4 9 Equalize .6 2|Equalize 0 7 Equalize .8 8|Invert .6 4 Equalize 1 8
Color .6 4 Contrast 1 8|Rotate .8 8 Color 1 2|Color .8 8 Solarize .8 7|Sharpness .4 7 Invert .6 8|ShearX .6 5 Equalize 1 9
Color .4 0 Equalize .6 3|Equalize .4 7 Solarize .2 4|Solarize .6 5 AutoContrast .6 5|Invert .6 4 Equalize 1 8
Color .6 4 Contrast 1 8|Equalize .8 8 Equalize .6 3"""
POLICY = [words.split() for words in POLICY.replace("\n", "|").split("|")]
OPERATIONS = sorted({policy[i] for policy in POLICY for i in (0, 3)})
FILL = (129 / 255, 124 / 255, 112 / 255)  # what comes in from outside, where there are three channels


def warp(x, level, signs, make):
    """x moved by the matrix of `make(±level)` (B, 2, 3), bilinear; outside is FILL."""
    fill = torch.tensor(FILL if x.shape[1] == 3 else [sum(FILL) / 3] * x.shape[1], device=x.device).view(1, -1, 1, 1)
    grid = F.affine_grid(make(level * signs), x.shape, align_corners=False)
    return F.grid_sample(x - fill, grid, align_corners=False) + fill


def rotation(part):  # by up to 30 degrees
    a = part * (torch.pi / 6)
    zero = torch.zeros_like(a)
    return torch.stack([torch.stack([a.cos(), -a.sin(), zero], 1), torch.stack([a.sin(), a.cos(), zero], 1)], 1)


def shear(part):  # by up to 0.3; the upper edge stays
    one, zero = torch.ones_like(part), torch.zeros_like(part)
    return torch.stack([torch.stack([one, 0.3 * part, 0.3 * part], 1), torch.stack([zero, one, zero], 1)], 1)


def blend(x, other, part):
    """From `other` to x and beyond, by 0.1 + 1.8 part."""
    return torch.lerp(other, x, (0.1 + 1.8 * part).view(-1, 1, 1, 1)).clamp(0, 1)


def grey(x):
    return V.rgb_to_grayscale(x, 3) if x.shape[1] == 3 else x


def posterize(x, part):  # 4 bits are left at level 0, 8 at level 10
    step = 2.0 ** (4 - (4 * part).floor()).view(-1, 1, 1, 1)
    return (x * 255 / step + 1e-4).floor() * step / 255


# each takes images (b, C, H, W), the level over 10 (b,), and signs of -1 and 1 (b,)
APPLY = {
    "Rotate": lambda x, part, signs: warp(x, part, signs, rotation),
    "ShearX": lambda x, part, signs: warp(x, part, signs, shear),
    "Posterize": lambda x, part, signs: posterize(x, part),
    "Solarize": lambda x, part, signs: torch.where(x * 255 >= (256 * part).floor().view(-1, 1, 1, 1), 1 - x, x),
    "AutoContrast": lambda x, part, signs: V.autocontrast(x),
    "Equalize": lambda x, part, signs: V.equalize(x),
    "Invert": lambda x, part, signs: 1 - x,
    "Color": lambda x, part, signs: blend(x, grey(x), part),
    "Contrast": lambda x, part, signs: blend(x, grey(x).mean((1, 2, 3), keepdim=True).expand_as(x), part),
    "Sharpness": lambda x, part, signs: blend(x, V.adjust_sharpness(x, 0.0), part),
}


def auto(x, noise=0.5):
    """AutoAugment: for each image of x (B, C, H, W) one of 25 pairs of operations, each with its probability, its level with normal noise
    of deviation `noise` and in [0, 10]. What is drawn is drawn on the CPU, so that no device has to be waited for."""
    table = torch.tensor([[[OPERATIONS.index(p[i]), float(p[i + 1]), float(p[i + 2])] for i in (0, 3)] for p in POLICY])
    drawn = table[torch.randint(len(POLICY), (len(x),))]  # (B, 2, 3)
    for kind, chance, level in (pair.unbind(1) for pair in drawn.unbind(1)):
        part = (level + noise * torch.randn_like(level)).clamp(0, 10) / 10
        signs = 1 - 2.0 * (torch.rand_like(level) < 0.5)
        kind = torch.where(torch.rand_like(level) < chance, kind, -1.0)
        for k, name in enumerate(OPERATIONS):
            if len(rows := (kind == k).nonzero()[:, 0]):
                rows, *how = (v.to(x.device, non_blocking=True) for v in (rows, part[rows], signs[rows]))
                x = x.index_copy(0, rows, APPLY[name](x[rows], *how))
    return x.clamp(0, 1)


def mixup(x, y, classes, alpha):
    """Images x (B, C, H, W) with those of the batch in reverse order, lambda x + (1 - lambda) x', lambda ~ Beta(alpha, alpha) one for the
    batch, and labels y (B,) mixed as much (B, K); Zhang et al. 2018."""
    lam = torch.distributions.Beta(alpha, alpha).sample().item()
    y = F.one_hot(y, classes).float()
    return torch.lerp(x.flip(0), x, lam), torch.lerp(y.flip(0), y, lam)
