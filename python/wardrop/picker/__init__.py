"""The endpoint picker: a file with settings, models and workers, and the run of the native picker.

`file` reads what a user writes. `server` starts the native picker, hands it the models and workers,
and reads the file again after each change. No Python runs while a request is decided.
"""

from wardrop.picker.file import ModelSpec, PickerFile, WorkerSpec, read_file
from wardrop.picker.server import PickerServer, StartError

__all__ = ["ModelSpec", "PickerFile", "PickerServer", "StartError", "WorkerSpec", "read_file"]
