"""The game itself: two players, their rules and their judges, in PyTorch, NumPy and the standard
library.
"""
