"""The attentive probe: a learned query attends to a clip's tokens (V-JEPA, arXiv 2404.08471; V-JEPA 2, 2506.09985).

Unlike the linear probe it may see the order of frames: a learned embedding of the frame is added to its tokens. A grid
of learning rates and weight decays is trained at once, as heads of one pass over the data.

Depth 1 is the clip-protocol attention readout. All heads are computed together, without projecting a token (see
`AttentiveStack`): twenty heads cost a third of one head's explicit key and value projections.

Depth 4 has three pre-norm self-attention blocks over all tokens of a clip in front. The heads are transformers of their
own, trained one after the other on each batch: a grid costs as many times one head as it has heads. Give fewer rates
and decays where that is too much.

Shapes: G heads of the grid, H attention heads, d = P / H, A = G * H; B clips, T frames, N tokens, S = T * N, R = B * T,
D channels of the tokens, P width, K classes.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfz.pipeline.errors import UsageError
from vfz.temporal.data.features import Features
from vfz.temporal.data.pooling import clip_tokens
from vfz.temporal.layers import SpatialBlock
from vfz.temporal.probes.heads import (
    CLASSES,
    Curves,
    HeadGrid,
    HeadOptimizer,
    Schedule,
    StackedOptimizer,
    TrainableHeads,
    head_answers,
    train_heads,
    value_losses,
)
from vfz.temporal.readouts import build_readout

LEARNING_RATES = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
WEIGHT_DECAYS = (0.01, 0.1, 0.4, 0.8)
HEAD_DIM = 64
NUM_BLOCKS = 3
ATTENTION_HEADS = 16
_INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class AttentiveFitter:
    """The grid of learning rates and weight decays at once.

    Attributes:
        pool: which frames are seen.
        lrs, weight_decays: every pair of them is a head.
    """

    num_classes: int
    schedule: Schedule
    pool: str
    lrs: tuple[float, ...] = LEARNING_RATES
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS
    label_kind: str = CLASSES
    refits: bool = False

    @property
    def settings(self) -> list[dict[str, float]]:
        """Of each head."""
        return [{"lr": lr, "weight_decay": decay} for lr in self.lrs for decay in self.weight_decays]

    def fit_grid(
        self, features: Features, labels_V: Tensor, videos: Tensor, watched: Tensor | None
    ) -> tuple[HeadGrid, Curves]:
        """Heads trained on some videos; `watched` ones are asked about after every epoch."""
        heads = self.begin(features, num_steps=self.schedule.num_steps(len(videos)))
        curves = train_heads(heads, features, labels_V, videos, schedule=self.schedule, watched=watched)
        return heads.grid(), curves

    def begin(self, features: Features, *, num_steps: int) -> TrainableHeads:
        """Heads with fresh weights, all the same."""
        return _StackInTraining(self, features, num_steps=num_steps)


class DeepFitter(AttentiveFitter):
    """As `AttentiveFitter`, of depth 4."""

    def begin(self, features: Features, *, num_steps: int) -> TrainableHeads:
        """See `AttentiveFitter`."""
        return _DeepInTraining(self, features, num_steps=num_steps)


class _TokenGrid(HeadGrid):
    """Heads that see a clip's tokens. With the pool `frame` each frame is asked about, and the answers are averaged."""

    pool: str

    @torch.no_grad()
    def proba(self, layers_BTND: Sequence[Tensor], num_prefix: Sequence[int]) -> Tensor:  # noqa: ARG002
        """See `HeadGrid`."""
        tokens_BTND = clip_tokens(layers_BTND, self.pool)
        if self.pool != "frame":
            return self.ask(tokens_BTND)
        proba_GRK = self.ask(_frames_apart(tokens_BTND))
        averaged_GBK: Tensor = proba_GRK.unflatten(1, tokens_BTND.shape[:2]).mean(dim=2)
        return averaged_GBK

    @abstractmethod
    def ask(self, tokens_BTND: Tensor) -> Tensor:
        """Answers [G,B,K] of each head."""


class AttentiveGrid(_TokenGrid):
    """Attentive heads of depth 1.

    Args:
        stack: gives logits [G,B,K] of tokens [B,T,N,D].
        settings: of each head.
        pool: which frames are seen.
        label_kind: what is answered; see `HeadGrid`.
    """

    def __init__(
        self,
        stack: AttentiveStack,
        *,
        settings: Sequence[Mapping[str, float]],
        pool: str,
        label_kind: str = CLASSES,
    ) -> None:
        self.stack, self.settings, self.pool, self.label_kind = stack, settings, pool, label_kind
        self.num_parameters = sum(parameter[0].numel() for parameter in stack.parameters())

    def ask(self, tokens_BTND: Tensor) -> Tensor:
        """See `HeadGrid`."""
        return head_answers(self.label_kind, self.stack(tokens_BTND))

    def only(self, head: int) -> AttentiveGrid:
        """See `HeadGrid`."""
        return self._like(self.stack.only(head), self.settings[head : head + 1])

    @torch.no_grad()
    def rescaled(self, mean_K: Tensor, deviation_K: Tensor) -> AttentiveGrid:
        """See `HeadGrid`."""
        stack = copy.deepcopy(self.stack)
        weight_GKP, bias_GK = stack.weights["classifier_weight"], stack.weights["classifier_bias"]
        weight_GKP.mul_(deviation_K.to(weight_GKP)[:, None])
        bias_GK.mul_(deviation_K.to(bias_GK)).add_(mean_K.to(bias_GK))
        return self._like(stack, self.settings)

    def _like(self, stack: AttentiveStack, settings: Sequence[Mapping[str, float]]) -> AttentiveGrid:
        return AttentiveGrid(stack, settings=settings, pool=self.pool, label_kind=self.label_kind)


class AttentiveStack(nn.Module):
    """G clip-protocol `classify` readouts, computed together.

    `weights` has the readout's parameters by name (with `_` for `.`), G in front. All heads begin with the same ones.

    No token is projected, and all heads share one normalised copy of the tokens. With n = (x - mean) / std of a token
    and LN(x) = w n + b, an attention head with query q scores

        q.(W_K (w n + b + p_t)) = (w * W_K^T q).n + (W_K^T q).(b + p_t)        p_t: the time embedding of its frame

    which is one product of n with a D-vector per attention head. Values are pooled before they are projected:

        sum_s a_s W_V (w n_s + b + p_t) = W_V (w * sum_s a_s n_s + b + sum_t (sum_{s in t} a_s) p_t)

    That is exact. G heads of H attention heads are two products with A columns.

    Args:
        num_heads: G.
        dim: D.
        num_classes: K.
        num_frames: T, the length of the time embedding.
    """

    def __init__(self, num_heads: int, *, dim: int, num_classes: int, num_frames: int) -> None:
        super().__init__()
        self.dim, self.num_classes, self.num_frames = dim, num_classes, num_frames
        first = self._new_readout().state_dict()
        self._names = {name: name.replace(".", "_") for name in first}
        self.weights = nn.ParameterDict(
            {self._names[name]: value.expand(num_heads, *value.shape).clone() for name, value in first.items()}
        )

    def readout(self, head: int) -> nn.Module:
        """One head as a readout of its own, which computes the same."""
        readout = self._new_readout()
        readout.load_state_dict({name: self.weights[own].detach()[head] for name, own in self._names.items()})
        return readout

    def only(self, head: int) -> AttentiveStack:
        """One head as a stack of one."""
        stack = AttentiveStack(1, dim=self.dim, num_classes=self.num_classes, num_frames=self.num_frames)
        stack.load_state_dict({name: value[head : head + 1] for name, value in self.state_dict().items()})
        return stack.to(self.weights["query"].device)

    def forward(self, tokens_BTND: Tensor) -> Tensor:
        """Logits [G,B,K].

        Raises:
            UsageError: for clips of another length than the time embedding.
        """
        if tokens_BTND.shape[1] != self.num_frames:
            raise UsageError(
                f"clips of {tokens_BTND.shape[1]} frames for a probe fitted on {self.num_frames}; give clips as long"
            )
        w = self.weights
        normed_BSD = F.layer_norm(tokens_BTND, (self.dim,)).flatten(1, 2)
        pooled_GBP = self._attend(normed_BSD)
        tok_GBP = w["query"].flatten(2) + _linear(pooled_GBP, w["out_proj_weight"], w["out_proj_bias"])
        normed_GBP = F.layer_norm(tok_GBP, tok_GBP.shape[-1:])
        normed_GBP = normed_GBP * w["mlp_norm_weight"][:, None] + w["mlp_norm_bias"][:, None]
        hidden = F.gelu(_linear(normed_GBP, w["mlp_fc1_weight"], w["mlp_fc1_bias"]))
        tok_GBP = tok_GBP + _linear(hidden, w["mlp_fc2_weight"], w["mlp_fc2_bias"])
        logits_GBK: Tensor = _linear(tok_GBP, w["classifier_weight"], w["classifier_bias"])
        return logits_GBK

    def _attend(self, n_BSD: Tensor) -> Tensor:
        """What each head's query finds among the normalised tokens, projected: [G,B,P]."""
        w = self.weights
        query_GHd = w["query"].squeeze(1)
        num_attention_heads, head_dim = query_GHd.shape[1:]
        key_GHdD = w["key_proj_weight"].unflatten(1, (num_attention_heads, head_dim))
        key_GHD = torch.einsum("ghp,ghpd->ghd", query_GHd * head_dim**-0.5, key_GHdD)
        # What the key's bias adds is the same for every token and leaves the softmax as it is.
        posenc_GTD = w["temporal_posenc"].squeeze(1).squeeze(2)
        bias_GHT = key_GHD @ (w["input_norm_bias"][:, None] + posenc_GTD).mT
        weighted_AD = (key_GHD * w["input_norm_weight"][:, None]).flatten(0, 1)
        scores_BAS = weighted_AD @ n_BSD.mT
        scores_BATN = scores_BAS.unflatten(2, (self.num_frames, -1)) + bias_GHT.flatten(0, 1).unsqueeze(2)
        attention_BAS = scores_BATN.flatten(2).softmax(dim=2)
        pooled_BAD = attention_BAS @ n_BSD
        share_BAT = attention_BAS.unflatten(2, (self.num_frames, -1)).sum(dim=3)
        pooled_GHBD, share_GHBT = (
            x.unflatten(1, query_GHd.shape[:2]).permute(1, 2, 0, 3) for x in (pooled_BAD, share_BAT)
        )
        pooled_GHBD = pooled_GHBD * w["input_norm_weight"][:, None, None] + w["input_norm_bias"][:, None, None]
        pooled_GHBD = pooled_GHBD + share_GHBT @ posenc_GTD.unsqueeze(1)
        value_GHdD = w["value_proj_weight"].unflatten(1, (num_attention_heads, head_dim))
        pooled_GBP = (pooled_GHBD @ value_GHdD.mT).permute(0, 2, 1, 3).flatten(2)
        with_bias_GBP: Tensor = pooled_GBP + w["value_proj_bias"][:, None]
        return with_bias_GBP

    def _new_readout(self) -> nn.Module:
        width = max(HEAD_DIM, self.dim // HEAD_DIM * HEAD_DIM)
        return build_readout(
            "classify",
            dim=self.dim,
            protocol="clip",
            num_classes=self.num_classes,
            readout_dim=width,
            num_heads=width // HEAD_DIM,
            num_frames=self.num_frames,
        )


class DeepGrid(_TokenGrid):
    """Attentive heads of depth 4, each a module that gives logits [B,K]; other arguments as `AttentiveGrid`."""

    def __init__(
        self,
        heads: nn.ModuleList,
        *,
        settings: Sequence[Mapping[str, float]],
        pool: str,
        label_kind: str = CLASSES,
    ) -> None:
        self.heads, self.settings, self.pool, self.label_kind = heads, settings, pool, label_kind
        self.num_parameters = sum(parameter.numel() for parameter in heads[0].parameters())

    def ask(self, tokens_BTND: Tensor) -> Tensor:
        """See `HeadGrid`."""
        return torch.stack([head_answers(self.label_kind, head(tokens_BTND)) for head in self.heads])

    def only(self, head: int) -> DeepGrid:
        """See `HeadGrid`."""
        return self._like(nn.ModuleList([self.heads[head]]), self.settings[head : head + 1])

    @torch.no_grad()
    def rescaled(self, mean_K: Tensor, deviation_K: Tensor) -> DeepGrid:
        """See `HeadGrid`."""
        heads = copy.deepcopy(self.heads)
        for head in heads:
            assert isinstance(head, AttentiveBlocks)  # noqa: S101 - for type checkers
            last: Any = head.readout.classifier
            last.weight.mul_(deviation_K.to(last.weight)[:, None])
            last.bias.mul_(deviation_K.to(last.bias)).add_(mean_K.to(last.bias))
        return self._like(heads, self.settings)

    def _like(self, heads: nn.ModuleList, settings: Sequence[Mapping[str, float]]) -> DeepGrid:
        return DeepGrid(heads, settings=settings, pool=self.pool, label_kind=self.label_kind)


class AttentiveBlocks(nn.Module):
    """Time embedding, self-attention blocks, attention readout: tokens [B,T,N,D] to logits [B,K]."""

    def __init__(self, *, dim: int, num_classes: int, num_frames: int) -> None:
        super().__init__()
        self.dim, self.num_classes, self.num_frames = dim, num_classes, num_frames
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


class _StackInTraining:
    def __init__(self, fitter: AttentiveFitter, features: Features, *, num_steps: int) -> None:
        num_frames, _, dim = features.frame_shapes()[0]
        torch.manual_seed(fitter.schedule.seed)
        self._stack = AttentiveStack(
            len(fitter.settings),
            dim=dim,
            num_classes=fitter.num_classes,
            num_frames=num_frames if fitter.pool == "all" else 1,
        ).to(features.device)
        self._grid = AttentiveGrid(
            self._stack, settings=fitter.settings, pool=fitter.pool, label_kind=fitter.label_kind
        )
        self._optimizer = StackedOptimizer(self._stack.parameters(), fitter.settings, kind="adamw", num_steps=num_steps)

    def train_step(self, layers_BTND: Sequence[Tensor], num_prefix: Sequence[int], labels_B: Tensor) -> Tensor:  # noqa: ARG002
        tokens_BTND = clip_tokens(layers_BTND, self._grid.pool)
        if self._grid.pool == "frame":
            tokens_BTND, labels_B = _frames_apart(tokens_BTND), labels_B.repeat_interleave(tokens_BTND.shape[1], dim=0)
        losses_G = _losses(self._grid.label_kind, self._stack(tokens_BTND), labels_B)
        self._optimizer.zero_grad()
        losses_G.sum().backward()
        self._optimizer.step()
        return losses_G.detach()

    def grid(self) -> HeadGrid:
        return self._grid


class _DeepInTraining:
    def __init__(self, fitter: DeepFitter, features: Features, *, num_steps: int) -> None:
        num_frames, _, dim = features.frame_shapes()[0]
        self._pool, self._label_kind = fitter.pool, fitter.label_kind
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
            tokens_BTND, labels_B = _frames_apart(tokens_BTND), labels_B.repeat_interleave(tokens_BTND.shape[1], dim=0)
        self._optimizer.zero_grad()
        losses = []
        for head in self._heads:  # backward at once: the activations of one head at a time
            loss = _losses(self._label_kind, head(tokens_BTND)[None], labels_B)[0]
            loss.backward()
            losses.append(loss.detach())
        self._optimizer.step()
        return torch.stack(losses)

    def grid(self) -> HeadGrid:
        return DeepGrid(self._heads, settings=self._settings, pool=self._pool, label_kind=self._label_kind)


def _losses(label_kind: str, logits_GBK: Tensor, labels_B: Tensor) -> Tensor:
    """The mean loss [G] of each head over clips of classes [B] or numbers [B,K]."""
    if label_kind != CLASSES:
        return value_losses(label_kind, logits_GBK, labels_B)
    labels = labels_B.repeat(len(logits_GBK))
    losses_GB = F.cross_entropy(logits_GBK.flatten(0, 1), labels, reduction="none").unflatten(0, logits_GBK.shape[:2])
    losses_G: Tensor = losses_GB.mean(dim=1)
    return losses_G


def _frames_apart(tokens_BTND: Tensor) -> Tensor:
    """Every frame as a clip of its own: [R,1,N,D]."""
    return tokens_BTND.flatten(0, 1).unsqueeze(1)


def _linear(x_GBI: Tensor, weight_GOI: Tensor, bias_GO: Tensor) -> Tensor:
    """A linear layer of each head."""
    return torch.baddbmm(bias_GO.unsqueeze(1), x_GBI, weight_GOI.mT)
