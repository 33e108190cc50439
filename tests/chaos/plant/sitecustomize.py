"""Plants a NaN in the gradients of one rank, once, when the file $CHAOS_NAN_FILE appears.

Python imports a module of this name at its start. Nothing of the product knows of it.
"""

import os
import sys

FILE = os.environ.get("CHAOS_NAN_FILE", "")
PLAYERS = ("gan.game", "tests.chaos.textbook")  # whoever imports one of them plays


class _Planter:
    def find_spec(self, name, path=None, target=None):
        if name in PLAYERS:
            sys.meta_path.remove(self)
            _plant()


def _plant():
    import torch

    plain = torch.Tensor.backward

    def backward(self, *args, **options):
        if os.path.exists(FILE):
            try:
                os.unlink(FILE)  # whoever removes it, and nobody else, is struck
            except FileNotFoundError:
                pass
            else:
                self = self * float("nan")
        return plain(self, *args, **options)

    torch.Tensor.backward = backward


if FILE:
    sys.meta_path.insert(0, _Planter())
