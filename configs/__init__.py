"""What exists: values only. Shapes, optimizers, corpora, meshes, chips; nothing is computed at import."""
