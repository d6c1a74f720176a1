"""MXNet Gluon 1.9.1 for multiparam. This module imports no framework."""

from multiparam.adapter import BackendInfo

backend = BackendInfo(
    "mxnet",
    recognises=("mxnet",),
    arrays=("mxnet",),
    requires=("mxnet",),
    adapter="multiparam_mxnet.adapter:MxnetAdapter",
    install='pip install "multiparam[mxnet]"',
    reads={".params": "multiparam_mxnet.files:read"},
    writes={".params": "multiparam_mxnet.files:write"},
    aliases=("gluon",),
    prepare="multiparam_mxnet.load:install",
)
