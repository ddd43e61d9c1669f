from nn_meter.builder.nn_modules import BaseOperator
from tensorflow import keras


class Op1(BaseOperator):
    """Softsign, ``x / (1 + |x|)``, for tensors of any rank."""

    def get_model(self):
        return keras.layers.Activation("softsign")
