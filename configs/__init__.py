"""What exists: values only. Shapes, optimizers, corpora, meshes; nothing is computed at import."""
