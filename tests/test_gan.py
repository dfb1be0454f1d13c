"""The DCGAN pair: the cheap up-convolution equals the plain one; shapes and ranges."""

from common.cli import UsageError

import pytest
import torch
import torch.nn.functional as F

from common.aeahl.nets import ReflectionPad
from common.gan import Discriminator, Generator, UpConv


def test_upconv_equals_upsampling_then_convolving():
    torch.manual_seed(0)
    conv = UpConv(3, 5).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.double, requires_grad=True)
    plain = F.conv2d(F.interpolate(x, scale_factor=2), conv.weight, conv.bias, padding=1)
    ours, w = conv(x), torch.randn(2, 5, 8, 8, dtype=torch.double)
    assert torch.allclose(ours, plain, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad((y * w).sum(), [x, conv.weight, conv.bias]) for y in (ours, plain)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_images_have_the_data_sets_shape_and_range(shape):
    torch.manual_seed(0)
    G, D = Generator(10, shape), Discriminator(shape)
    x = G(torch.randn(4, 10) * 100)
    assert x.shape == (4, *shape) and x.abs().max() <= 1
    assert D(x).shape == (4, 1)


def test_generator_has_the_papers_parameters():
    """z 256 wide at 32 pixels and 3 channels: 2,328,899, the fourth paper's count, plus two biases before batch norm (128 + 64)."""
    assert sum(p.numel() for p in Generator(256, (3, 32, 32)).parameters()) == 2_328_899 + 128 + 64


def test_side_must_be_a_multiple_of_four():
    with pytest.raises(UsageError, match="--img_size 32"):
        Generator(10, (1, 30, 30))


def test_batch_norm_hides_batches_from_a_discriminator_that_sees_them_apart():
    """Why DCGAN.py joins real and generated images: at 8 pixels the last map is 1 x 1, and any two batches get the same mean logit."""
    torch.manual_seed(0)
    D = Discriminator((1, 8, 8))
    a, b = torch.rand(32, 1, 8, 8) * 2 - 1, -torch.ones(32, 1, 8, 8) + 0.1 * torch.randn(32, 1, 8, 8)
    apart = abs(D(a).mean() - D(b).mean())
    of_a, of_b = D(torch.cat([a, b])).chunk(2)
    assert apart < 1e-4 < 1e-3 < abs(of_a.mean() - of_b.mean())


def test_mirrored_borders_are_torchs():
    x = torch.randn(2, 3, 5, 6, dtype=torch.double, requires_grad=True)
    for pad in (1, 3):
        ours, theirs = ReflectionPad(pad)(x), F.pad(x, (pad,) * 4, mode="reflect")
        w = torch.randn_like(ours)
        assert torch.equal(ours, theirs)
        assert torch.allclose(*(torch.autograd.grad((y * w).sum(), x)[0] for y in (ours, theirs)))
