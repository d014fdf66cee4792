"""Drawing tokens from generators: one compiled loop, guidance, filters, reranking."""
