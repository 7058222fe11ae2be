"""Name the errors that the user can mend.

The command line shows each of them as one line.
"""


class UserError(ValueError):
    """Say that something given cannot be used.

    The message says what is accepted.
    """


class OptionError(UserError):
    """Say that an option is out of its range.

    The message names it.
    """


class CheckpointError(UserError):
    """Say that a checkpoint cannot be read.

    The message names the file or the tensor.
    """


class RemoteError(CheckpointError):
    """Say that a server does not give a checkpoint's bytes.

    The message names the URL without secrets. What was begun can go on later: no tensor is to blame.
    """


class AdapterError(UserError):
    """Say that an adapter is unreadable or does not fit.

    The message names the file or the layer.
    """


class FittingError(UserError):
    """Say that fitted pivots or factors do not fit.

    The message names the file or the layer.
    """


class OutputError(UserError):
    """Say that files cannot be put where asked.

    The message says why.
    """


class DocumentError(UserError):
    """Say that saved results cannot be read.

    The message names the file.
    """


class JournalError(UserError):
    """Say that a journal cannot be continued.

    The message says what can be done.
    """


class NothingToAnalyzeError(UserError):
    """Say that no tensor of a checkpoint can be analyzed.

    The message counts the reasons.
    """


class NothingToCompareError(UserError):
    """Say that no matrix of two checkpoints was changed.

    The message counts the reasons.
    """


class ClusterError(UserError):
    """Say that a cluster cannot do the work.

    The message names its scheduler.
    """


class WorkerError(UserError):
    """Say that a cluster's worker is not fit.

    The message says what it lacks.
    """


class RoundTripError(UserError):
    """Say that the demo's model changed when reloaded or merged."""


class MissingExtraError(UserError, ImportError):
    """Say that an extra's library is not installed.

    The message names the extra.
    """


class TrainingError(UserError):
    """Say that training cannot go on.

    The message says what to change.
    """


class DivergenceError(TrainingError):
    """Say that a loss or a prediction is not finite.

    Another setting of the same run may train.
    """


class RunDirectoryError(UserError):
    """Say that a run's folder cannot be used or continued.

    The message names what differs.
    """
