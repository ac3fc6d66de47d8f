"""The name of a module of version 0.3 that is no more: importing it says so."""

raise ImportError(
    "hunterFormsBS.hyperACE was part of version 0.3 and has no successor of that name. To keep code that builds its "
    "layers, stay with hunterFormsBS<0.4; docs/migration.md says what else moved."
)
