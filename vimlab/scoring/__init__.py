"""How well images fit texts: pretrained networks that give both a place in one space, read from the user's own files."""
