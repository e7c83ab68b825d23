"""How corpora are built; `data_pipeline.build` is what others use of it."""
