"""mask_mod, lengths -> which blocks of the score matrix to visit, and which of them need the mask at all."""

from .block_mask import BlockMask
from .combine import and_masks, or_masks
from .create import create_block_mask, create_mask
from .lists import BlockRanges
from .views import noop_mask

__all__ = ["BlockMask", "BlockRanges", "and_masks", "create_block_mask", "create_mask", "noop_mask", "or_masks"]
