"""PyTorch for multiparam. This module imports no framework."""

from multiparam.adapter import BackendInfo

backend = BackendInfo(
    "torch",
    recognises=("torch",),
    arrays=("torch",),
    requires=("torch",),
    adapter="multiparam_torch.adapter:TorchAdapter",
    install='pip install "multiparam[torch]"',
    reads={
        **dict.fromkeys((".pt", ".pth", ".bin"), "multiparam_torch.zip_files:read"),
        "dcp/": "multiparam_torch.distributed:read",
    },
    writes=dict.fromkeys((".pt", ".pth"), "multiparam_torch.files:write"),
    aliases=("pytorch",),
)
