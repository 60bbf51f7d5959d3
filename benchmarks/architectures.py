"""Architectures that the bundled models do not have: two of torchvision for 32x32 images, and students."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import VisionTransformer, resnet18
from torchvision.models.vision_transformer import ConvStemConfig

from art_logits.models import CIFAR10_MEAN, CIFAR10_STD, MNIST_MEAN, MNIST_STD, Normalize


def resnet18_cifar(num_classes: int = 10) -> nn.Module:
    """ResNet-18 as the field uses it on CIFAR: 3x3 first convolution of stride 1 and no pooling."""
    net = resnet18(num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return nn.Sequential(Normalize(CIFAR10_MEAN, CIFAR10_STD), net)


def vit_cifar(num_classes: int = 10) -> nn.Module:
    """A small vision transformer: 64 patches of 4x4, 6 layers, 3 heads, width 192; 2.7 million parameters."""
    return _transformer(patch_size=4, num_layers=6, num_heads=3, width=192, num_classes=num_classes)


def vit_tiny_cifar(num_classes: int = 10) -> nn.Module:
    """A tiny vision transformer: 16 patches, 4 layers, 4 heads, width 96; 480 thousand parameters.

    Its patches come from three convolutions (Xiao et al. 2021): without them it learns next to nothing from a
    few ten thousand images under attack.
    """
    stem = [ConvStemConfig(out_channels=width, kernel_size=3, stride=2) for width in (16, 32, 64)]
    return _transformer(patch_size=8, num_layers=4, num_heads=4, width=96, num_classes=num_classes, stem=stem)


def _transformer(
    *,
    patch_size: int,
    num_layers: int,
    num_heads: int,
    width: int,
    num_classes: int,
    stem: list[ConvStemConfig] | None = None,
) -> nn.Module:
    net = VisionTransformer(
        image_size=32,
        patch_size=patch_size,
        conv_stem_configs=stem,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=num_classes,
    )
    # torchvision starts the head at zero, and with it every logit.
    nn.init.normal_(net.heads.head.weight, std=width**-0.5)
    return nn.Sequential(Normalize(CIFAR10_MEAN, CIFAR10_STD), net)


def student_mnist(num_classes: int = 10) -> nn.Sequential:
    """A student of 28x28 gray images for one core: 29 thousand parameters, 2 million multiplications."""
    return _channels_last(Normalize(MNIST_MEAN, MNIST_STD), _strided(1, 16, num_classes))


def student_cifar(num_classes: int = 10) -> nn.Sequential:
    """A student of 32x32 colour images for one core: 64 thousand parameters, 6 million multiplications."""
    return _channels_last(Normalize(CIFAR10_MEAN, CIFAR10_STD), _strided(3, 24, num_classes))


def _strided(in_channels: int, width: int, num_classes: int) -> nn.Sequential:
    """Four 3x3 convolutions with batch norm, two of stride 2 before most of the work, pooling, linear."""
    channels = [in_channels, width, 2 * width, 2 * width, 3 * width]
    layers: list[nn.Module] = []
    for before, after, stride in zip(channels, channels[1:], (2, 1, 2, 1), strict=False):
        layers += [
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], num_classes))


def _channels_last(*layers: nn.Module) -> nn.Sequential:
    """The layers in the order of memory in which a CPU convolves faster."""
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)
