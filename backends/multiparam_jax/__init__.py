"""JAX with Flax, linen and NNX, for multiparam. This module imports no framework."""

from multiparam.adapter import BackendInfo

backend = BackendInfo(
    "jax",
    recognises=("flax",),
    arrays=("jax", "jaxlib", "flax"),
    requires=("jax", "flax", "optax"),
    adapter="multiparam_jax.adapter:JaxAdapter",
    install='pip install "multiparam[jax]"',
    reads={".msgpack": "multiparam_jax.files:read", "orbax/": "multiparam_jax.orbax:read"},
    writes={".msgpack": "multiparam_jax.files:write", ".orbax/": "multiparam_jax.orbax:write"},
    aliases=("flax", "linen", "nnx"),
)
