"""The graph of a study's stages: builder, identity, lineage, record, audit."""
