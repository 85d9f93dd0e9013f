"""The page on which a model is tried: demo/app.py serves it."""
