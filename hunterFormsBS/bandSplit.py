"""Public names of band layouts, the layers that work band by band, and the loss."""

from hunterFormsBS.blocks.bandSplit import BandSplit as BandSplit
from hunterFormsBS.blocks.layout import DEFAULT_FREQS_PER_BANDS as DEFAULT_FREQS_PER_BANDS
from hunterFormsBS.blocks.layout import mask_filter_bank_bs_roformer_default as mask_filter_bank_bs_roformer_default
from hunterFormsBS.blocks.layout import mask_filter_bank_mel as mask_filter_bank_mel
from hunterFormsBS.blocks.layout import mask_filter_bank_mel_band_default as mask_filter_bank_mel_band_default
from hunterFormsBS.blocks.layout import mask_filter_bank_non_overlapping as mask_filter_bank_non_overlapping
from hunterFormsBS.blocks.loss import lossComputation as lossComputation
from hunterFormsBS.heads.mlp import MLP as MLP
from hunterFormsBS.heads.mlp import MaskEstimator as MaskEstimator
from hunterFormsBS.heads.mlp import masks_of_stems as masks_of_stems
