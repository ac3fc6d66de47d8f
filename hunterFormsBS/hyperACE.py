"""The name of a module of version 0.3 that is no more: importing it says so."""

raise ImportError(
    "hunterFormsBS.hyperACE was part of version 0.3: BandSplitRotator(use_hyperACE=True) builds the heads, and their "
    "layers are in hunterFormsBS.blocks.segmentation and hunterFormsBS.blocks.hypergraph, with other names. "
    "docs/migration.md says what else moved."
)
