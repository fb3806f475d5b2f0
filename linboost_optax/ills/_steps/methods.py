"""The methods of ILLS by name; a new one is a file like theirs and a line here."""

from linboost_optax.ills._steps.published import Published
from linboost_optax.ills._steps.weighted import Weighted

METHODS = {"weighted": Weighted, "published": Published}
