"""The network: from a YAML specification to heads, boxes and weights on disk."""
