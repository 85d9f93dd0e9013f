"""The page on which a model is tried: `scnet app` serves it."""
