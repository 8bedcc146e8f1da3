"""`python/fl_client/torch.py` for scripts that run without the package: networks of model files as torch.nn modules."""
import importlib.util
import pathlib

_PATH = pathlib.Path(__file__).resolve().parent.parent / "python" / "fl_client" / "torch.py"
_SPEC = importlib.util.spec_from_file_location("fl_client_torch", _PATH)
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)

build, load_into = _MODULE.build, _MODULE.load_into
task_of, input_of, noise, loss, metric = (
    _MODULE.task_of,
    _MODULE.input_of,
    _MODULE.noise,
    _MODULE.loss,
    _MODULE.metric,
)
