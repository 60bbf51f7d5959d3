"""Two architectures that the bundled models do not have, from torchvision, for 32x32 colour images."""

from __future__ import annotations

from torch import nn
from torchvision.models import VisionTransformer, resnet18

from art_logits.models import CIFAR10_MEAN, CIFAR10_STD, Normalize


def resnet18_cifar(num_classes: int = 10) -> nn.Module:
    """ResNet-18 as the field uses it on CIFAR: 3x3 first convolution of stride 1 and no pooling."""
    net = resnet18(num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return nn.Sequential(Normalize(CIFAR10_MEAN, CIFAR10_STD), net)


def vit_cifar(num_classes: int = 10) -> nn.Module:
    """A small vision transformer: 64 patches of 4x4, 6 layers, 3 heads, width 192; 2.7 million parameters."""
    net = VisionTransformer(
        image_size=32,
        patch_size=4,
        num_layers=6,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
        num_classes=num_classes,
    )
    # torchvision starts the head at zero, and with it every logit.
    nn.init.normal_(net.heads.head.weight, std=192**-0.5)
    return nn.Sequential(Normalize(CIFAR10_MEAN, CIFAR10_STD), net)
