"""How good a model is, example by example, and whether one is really better than another.

`metrics` turns a model and encoded rows into one number per example, `answers` says when a generated text
gives the right answer, `statistics` compares two models on the same examples.
"""
