"""From documents to batches: sources, tokenizer, store, order, mixture, pipeline."""
