"""vimlab: vision tokenizers and token generators in JAX."""

__version__ = "0.1.0"
