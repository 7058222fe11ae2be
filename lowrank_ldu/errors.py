"""Errors of what the user can mend: the command line shows each of them as one line."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what is accepted."""


class OptionError(UserError):
    """An option is out of its range; the message names it."""


class CheckpointError(UserError):
    """A checkpoint cannot be read; the message names the file or the tensor."""


class AdapterError(UserError):
    """An adapter cannot be read, or does not fit the model; the message names the file or the layer."""


class OutputError(UserError):
    """Files cannot be put where they were asked for; the message says why."""


class JournalError(UserError):
    """A journal cannot be continued; the message says what can be done."""


class NothingToAnalyzeError(UserError):
    """A checkpoint has no tensor that could be analyzed; the message counts the reasons."""


class NothingToCompareError(UserError):
    """Two checkpoints have no matrix that was changed; the message counts the reasons."""


class ClusterError(UserError):
    """A cluster cannot do the work; the message names its scheduler."""


class WorkerError(UserError):
    """A worker of a cluster is not fit for the work; the message says what it lacks."""


class RoundTripError(UserError):
    """The demo's reloaded or merged model does not do what the trained one does."""


class MissingExtraError(UserError, ImportError):
    """A library of an extra is not installed; the message names the extra."""
