"""The one error of this package."""


class AdapterError(ValueError):
    """An adapter cannot be read, or does not belong to the model; the message names the file or the layer."""
