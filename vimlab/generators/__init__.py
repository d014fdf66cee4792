"""Models of tokens, from parts: layout, conditioner, backbone, head. They know tokenizers only through Tokens."""
