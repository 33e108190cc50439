"""The checker of shape annotations: beartype, with an int welcome where a float is (PEP 484's
tower).
"""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
