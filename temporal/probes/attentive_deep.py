"""The attentive probe of depth 4 (V-JEPA 2, arXiv 2506.09985).

Three pre-norm self-attention blocks over all tokens of a clip, then a learned query that attends to them, with 16 heads
of attention.

Frozen image tokens know nothing of time, so a learned embedding of the frame is added in front. The heads of the grid
are transformers of their own and are trained one after the other on each batch, which is read once for all of them:
a sweep costs as many times one head as it has heads. Give fewer rates and decays where that is too much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfz.temporal.data.features import Features
from vfz.temporal.data.pooling import clip_tokens
from vfz.temporal.layers import SpatialBlock
from vfz.temporal.probes.attentive import AttentiveFitter
from vfz.temporal.probes.heads import HeadGrid, HeadOptimizer
from vfz.temporal.probes.training import TrainableHeads
from vfz.temporal.readouts import build_readout

NUM_BLOCKS = 3
ATTENTION_HEADS = 16
_INIT_STD = 0.02


class AttentiveBlocks(nn.Module):
    """Time embedding, self-attention blocks, attention readout: tokens [B,T,N,D] to logits [B,K]."""

    def __init__(self, *, dim: int, num_classes: int, num_frames: int) -> None:
        super().__init__()
        # 16, or the most below that divide the channels
        num_heads = max(heads for heads in range(1, ATTENTION_HEADS + 1) if dim % heads == 0)
        self.time_1T1D = nn.Parameter(torch.randn(1, num_frames, 1, dim) * _INIT_STD)
        self.blocks = nn.Sequential(
            *(SpatialBlock(dim, num_heads=num_heads, dropout=0.0, drop_path=0.0) for _ in range(NUM_BLOCKS))
        )
        self.readout = build_readout("classify", dim=dim, num_classes=num_classes, readout_dim=dim, num_heads=num_heads)

    def forward(self, tokens_BTND: Tensor) -> Tensor:
        """Logits [B,K]."""
        x_B1SD = (tokens_BTND + self.time_1T1D).flatten(1, 2).unsqueeze(1)
        logits_BK: Tensor = self.readout(self.blocks(x_B1SD)).squeeze(1)
        return logits_BK


class DeepGrid(HeadGrid):
    """Classifiers of a clip's tokens, each a module; arguments as `AttentiveGrid`."""

    def __init__(self, heads: nn.ModuleList, *, settings: Sequence[Mapping[str, float]], pool: str) -> None:
        self.heads, self.settings, self.pool = heads, settings, pool
        self.num_parameters = sum(parameter.numel() for parameter in heads[0].parameters())

    @torch.no_grad()
    def proba(self, layers_BTND: Sequence[Tensor], num_prefix: Sequence[int]) -> Tensor:  # noqa: ARG002
        """See `HeadGrid`."""
        tokens_BTND = clip_tokens(layers_BTND, self.pool)
        if self.pool != "frame":
            return torch.stack([head(tokens_BTND).softmax(dim=1) for head in self.heads])
        rows_R1ND = tokens_BTND.flatten(0, 1).unsqueeze(1)
        proba_GRK = torch.stack([head(rows_R1ND).softmax(dim=1) for head in self.heads])
        averaged_GBK: Tensor = proba_GRK.unflatten(1, tokens_BTND.shape[:2]).mean(dim=2)
        return averaged_GBK

    def only(self, head: int) -> DeepGrid:
        """See `HeadGrid`."""
        return DeepGrid(nn.ModuleList([self.heads[head]]), settings=self.settings[head : head + 1], pool=self.pool)


class DeepFitter(AttentiveFitter):
    """As `AttentiveFitter`, of depth 4."""

    def begin(self, features: Features, *, num_steps: int) -> TrainableHeads:
        """See `AttentiveFitter`."""
        return _DeepInTraining(self, features, num_steps=num_steps)


class _DeepInTraining:
    def __init__(self, fitter: DeepFitter, features: Features, *, num_steps: int) -> None:
        num_frames, _, dim = features.frame_shapes()[0]
        self._pool = fitter.pool
        heads = []
        for _ in fitter.settings:
            torch.manual_seed(fitter.schedule.seed)  # all heads begin with the same weights
            frames = num_frames if fitter.pool == "all" else 1
            heads.append(AttentiveBlocks(dim=dim, num_classes=fitter.num_classes, num_frames=frames))
        self._heads = nn.ModuleList(heads).to(features.device)
        self._settings = fitter.settings
        self._optimizer = HeadOptimizer(
            [head.parameters() for head in self._heads], fitter.settings, kind="adamw", num_steps=num_steps
        )

    def train_step(self, layers_BTND: Sequence[Tensor], num_prefix: Sequence[int], labels_B: Tensor) -> Tensor:  # noqa: ARG002
        tokens_BTND = clip_tokens(layers_BTND, self._pool)
        if self._pool == "frame":
            labels_B = labels_B.repeat_interleave(tokens_BTND.shape[1])
            tokens_BTND = tokens_BTND.flatten(0, 1).unsqueeze(1)
        self._optimizer.zero_grad()
        losses = []
        for head in self._heads:  # backward at once: the activations of one head at a time
            loss = F.cross_entropy(head(tokens_BTND), labels_B)
            loss.backward()
            losses.append(loss.detach())
        self._optimizer.step()
        return torch.stack(losses)

    def grid(self) -> HeadGrid:
        return DeepGrid(self._heads, settings=self._settings, pool=self._pool)
