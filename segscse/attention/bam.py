"""BAM: a channel branch and a dilated spatial branch, joined before the sigmoid."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from segscse.attention.base import (
    AttentionBlock,
    at_least,
    expand_like,
    fp32,
    global_mean,
    hidden_width,
    layer_norm_fp32,
    linear_fp32,
    logits_to_gate,
    no_autocast,
    norm_layer,
    one_of,
    vector_norm,
)
from segscse.nets.dims import conv

FORMS = ("add", "mul")


class BAM(AttentionBlock):
    r"""BAM: $M = \sigma(M_c(x) + M_s(x))$, $y = (1 + M)\, x$.

    Park et al., "BAM: Bottleneck Attention Module", arXiv 1807.06514, eq. 1 to 4. $M_c$ is an MLP of the
    spatial mean, $M_s$ a 1x1 convolution to C/r channels, two dilated 3-wide ones and a 1x1 to one channel.
    The gate is `(B, C, *S)` in (1, 2): it never suppresses, it raises what matters up to twofold. The authors
    place it between the stages of a network only.

    As in the authors' code there is no norm after the last layer of either branch; the paper has one.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        form: `"add"` as in the paper, whose ablation prefers it; `"mul"` is $\sigma(M_c M_s)$, what the
            authors' released code computes.
        reduction: r, 16 as in the paper.
        min_hidden: floor of the hidden width, not in the paper.
        dilation: of the two 3-wide convolutions, 4 as in the paper.
        norm: of the spatial branch: `"group"`, `"instance"`, `"batch"` or None; unless it is None the channel
            branch has a LayerNorm. The authors' BatchNorm raises there at batch size 1.
    """

    pools_to_mean: ClassVar[bool] = True

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int,
        form: str = "add",
        reduction: int = 16,
        min_hidden: int = 4,
        dilation: int = 4,
        norm: str | None = "group",
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.form = one_of("form", form, FORMS)
        hidden = hidden_width(channels, reduction=reduction, min_hidden=min_hidden)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc_norm = vector_norm(norm, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.spatial = _spatial_branch(
            channels, hidden, spatial_dims=spatial_dims, dilation=at_least("dilation", dilation, 1), norm=norm
        )

    def _channel_logits(self, x: Tensor) -> Tensor:
        with no_autocast(x):
            hidden = F.relu(layer_norm_fp32(linear_fp32(global_mean(x), self.fc1), self.fc_norm))
            return expand_like(linear_fp32(hidden, self.fc2), x)

    def gate(self, x: Tensor) -> Tensor:
        """Return `1 + M`, `(B, C, *S)` in (1, 2), in fp32."""
        channel, spatial = self._channel_logits(x), fp32(self.spatial(x))
        return 1 + logits_to_gate(channel + spatial if self.form == "add" else channel * spatial)


def _spatial_branch(channels: int, hidden: int, *, spatial_dims: int, dilation: int, norm: str | None) -> nn.Sequential:
    layer = conv(spatial_dims)
    layers: list[nn.Module] = [layer(channels, hidden, kernel_size=1)]
    for _ in range(2):
        layers += [norm_layer(norm, hidden, spatial_dims=spatial_dims), nn.ReLU()]
        layers += [layer(hidden, hidden, kernel_size=3, padding=dilation, dilation=dilation)]
    layers += [norm_layer(norm, hidden, spatial_dims=spatial_dims), nn.ReLU()]
    return nn.Sequential(*layers, layer(hidden, 1, kernel_size=1))
