"""What may be varied in training clips of cached tokens, and is right on tokens.

Time can be shifted and stretched: other frames of the same video are other inputs. Views that were cropped and mirrored
at extraction can be chosen among. Patch tokens can be dropped, at the same positions in every frame, since a recurrent
core keeps a state for each position, and of the whole batch, so that it stays one tensor.

Tokens are never mirrored: the tokens of a mirrored image are not the mirrored tokens of the image (the encoder knows
where left is), which is why views are made at extraction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfz.pipeline.cache.request import is_whole, shown
from vfz.pipeline.errors import UsageError

PLACE_TASKS = ("boxes", "points", "depth")
"""Tasks that ask about places in the picture, whose tokens may have been dropped."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training clips are varied; evaluation never is.

    Attributes:
        random_position: a clip begins anywhere in its video, instead of lying in its centre.
        stride_factors: what the clip rule's stride (or step in seconds) is multiplied by; drawn for each clip among
            those that its video is long enough for, or the smallest where it is for none.
        random_view: each clip is of any of its video's views, instead of the first.
        token_dropout: share of the patch tokens that are left out; prefix tokens stay.

    Raises:
        UsageError: for factors below 1 or none, or a share outside 0 <= share < 1.
    """

    random_position: bool = True
    stride_factors: tuple[int, ...] = (1,)
    random_view: bool = False
    token_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.stride_factors or not all(is_whole(factor) and factor >= 1 for factor in self.stride_factors):
            raise UsageError(f"stride factors {shown(self.stride_factors)}; one or several whole numbers from 1 on")
        if not 0 <= self.token_dropout < 1:
            raise UsageError(f"token dropout {shown(self.token_dropout)} is no share of the patch tokens; 0 <= it < 1")

    def check_task(self, task: str) -> None:
        """Refuses to drop tokens where a task asks about their places.

        Raises:
            UsageError: says which tasks they are.
        """
        if self.token_dropout and task in PLACE_TASKS:
            raise UsageError(
                f"token dropout {self.token_dropout} with task {task}: it asks about places whose tokens may be gone; "
                f"set it to 0 for {', '.join(PLACE_TASKS)}"
            )

    def kept_tokens(self, num_tokens: int, num_prefix: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Positions of the tokens of a frame that stay, in order: the prefix and a random part of the patches.

        Raises:
            UsageError: when there are no patch tokens.
        """
        num_patches = num_tokens - num_prefix
        if not num_patches:
            raise UsageError("token dropout leaves out patch tokens, and there are only prefix tokens; set it to 0")
        num_kept = max(1, round(num_patches * (1 - self.token_dropout)))
        patches = np.sort(generator.choice(num_patches, num_kept, replace=False)) + num_prefix
        return np.concatenate([np.arange(num_prefix), patches])
