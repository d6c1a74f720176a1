"""tinynet for multiparam. This module imports no framework."""

from multiparam.adapter import BackendInfo

backend = BackendInfo(
    "autograd",
    recognises=("tinynet",),
    arrays=("tinynet", "autograd"),
    requires=("autograd", "tinynet", "scipy"),
    adapter="multiparam_autograd.adapter:AutogradAdapter",
    install="pip install multiparam-autograd",
)
