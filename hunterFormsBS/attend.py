"""Public names of the transformer blocks."""

from hunterFormsBS.blocks.attend import Attend as Attend
from hunterFormsBS.blocks.attention import Attention as Attention
from hunterFormsBS.blocks.attention import LinearAttention as LinearAttention
from hunterFormsBS.blocks.feedForward import FeedForward as FeedForward
from hunterFormsBS.blocks.transformer import Transformer as Transformer
