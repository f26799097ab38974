"""Files: written whole or not at all, and read without unpickling."""

from gftkit.storage.documents import (
    nan_to_none as nan_to_none,
    parse_yaml as parse_yaml,
    read_json as read_json,
    read_yaml as read_yaml,
    parse_section as parse_section,
    write_json as write_json,
    write_text as write_text,
)
from gftkit.storage.files import (
    check_space as check_space,
    explain_file_errors as explain_file_errors,
    lock_folder as lock_folder,
    remove_leftovers as remove_leftovers,
    write_atomically as write_atomically,
)
from gftkit.storage.log import (
    Log as Log,
    is_last_line as is_last_line,
    curve as curve,
    measured_names as measured_names,
    read_log as read_log,
)
from gftkit.storage.tensors import (
    State as State,
    TensorFile as TensorFile,
    digest as digest,
    read_notes as read_notes,
    read_tensor_file as read_tensor_file,
    read_tensors as read_tensors,
    write_tensors as write_tensors,
)
