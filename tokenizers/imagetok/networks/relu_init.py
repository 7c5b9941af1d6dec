"""Initial weights of networks with ReLUs.

He et al., Delving Deep into Rectifiers, 2015, arXiv 1502.01852: a standard deviation of
sqrt(2 / fan_in) keeps the scale of activations through a ReLU network. torch's default shrinks them
by more than half per layer, and after the six levels that lead to one latent vector a posterior's
noise drowns what is left.
"""

from __future__ import annotations

import math

from torch import nn

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def initialize_relu_network(network: nn.Module, last_gain: float) -> None:
    """Draw all weights of linear and convolutional layers anew, from torch's generator.

    Args:
        network: A network whose layers are each followed by a ReLU, the last one perhaps excepted.
        last_gain: Factor of the last layer's weights: small in a decoder, so that it starts at
            mid-gray, and not at noise that has to be unlearnt.
    """
    layers = [m for m in network.modules() if isinstance(m, LAYERS)]
    for layer in layers:
        if isinstance(layer, nn.ConvTranspose2d):
            # Each output pixel sees kernel^2 / stride^2 of the kernel's weights.
            area = math.prod(layer.kernel_size) / math.prod(layer.stride)
            fan_in = layer.in_channels * area
        else:
            fan_in = layer.weight[0].numel()
        gain = last_gain if layer is layers[-1] else math.sqrt(2)
        nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
