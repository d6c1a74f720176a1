"""TensorFlow with Keras, 3 and tf_keras 2, for multiparam. This module imports no framework."""

from multiparam.adapter import BackendInfo

backend = BackendInfo(
    "tensorflow",
    recognises=("keras", "tf_keras"),
    arrays=("tensorflow", "keras", "tf_keras"),
    requires="multiparam_tensorflow.installed:requires",
    adapter="multiparam_tensorflow.adapter:TensorflowAdapter",
    install='pip install "multiparam[tensorflow]"',
    reads={"tensorflow/": "multiparam_tensorflow.checkpoints:read"},
    writes={".weights.h5": "multiparam_tensorflow.files:write"},
    models_only=(".weights.h5",),  # laid out as a model's layers are
    aliases=("keras", "tf_keras", "tf"),
)
