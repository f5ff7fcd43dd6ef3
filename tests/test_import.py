"""What `import promerge_d2` does and, above all, does not do; each in a process of its own."""

import importlib.util
import os
import subprocess
import sys

import pytest

import promerge_d2

needs_detectron2 = pytest.mark.skipif(
    importlib.util.find_spec("detectron2") is None,
    reason="detectron2 is not installed (promerge env --install-detectron2)",
)

BLOCK_DETECTRON2 = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "detectron2":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_labeler_and_features_do_without_detectron2():
    code, output = run(
        BLOCK_DETECTRON2
        + """
import promerge_d2
assert "torch" not in sys.modules, "import promerge_d2 should be light"
import promerge_d2.features, promerge_d2.labeler
assert promerge_d2.ProMergeLabeler is promerge_d2.labeler.ProMergeLabeler
assert promerge_d2.features.BACKBONES
assert "detectron2" not in sys.modules
"""
    )
    assert code == 0, output


@pytest.mark.parametrize("name", ["add_promerge_config", "register_promerge_instances"])
def test_names_that_need_detectron2_say_how_to_install_it(name):
    code, output = run(BLOCK_DETECTRON2 + f"from promerge_d2 import {name}")
    assert code == 1
    assert f"ImportError: promerge_d2.{name} needs detectron2" in output
    assert "promerge env --install-detectron2" in output


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('broken inside')", "RuntimeError: broken inside"),
        ("import no_such_requirement", "No module named 'no_such_requirement'"),
        ("raise ImportError('_C.so: undefined symbol')", "_C.so: undefined symbol"),
    ],
)
def test_other_errors_of_detectron2_pass_through(tmp_path, body, message):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text(body)
    code, output = run("import promerge_d2", PYTHONPATH=str(tmp_path))
    assert code == 1
    assert message in output.splitlines()[-1]


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = promerge_d2.no_such_name
    code, output = run(BLOCK_DETECTRON2 + "import promerge_d2; promerge_d2.no_such_name")
    assert code == 1
    assert "AttributeError: module 'promerge_d2' has no attribute 'no_such_name'" in output


@needs_detectron2
def test_import_registers_without_network_or_gpu():
    code, output = run(
        """
import socket
def refuse(*arguments, **keywords):
    raise AssertionError(f"import promerge_d2 used the network: {arguments}")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = refuse

import sys
import promerge_d2
import torch
assert not torch.cuda.is_initialized()
assert "promerge_d2.data" in sys.modules
from detectron2.modeling import ROI_HEADS_REGISTRY
assert "DropLossCascadeROIHeads" in ROI_HEADS_REGISTRY
assert "promerge_d2.labeler" not in sys.modules
for name in promerge_d2.__all__:
    assert callable(getattr(promerge_d2, name)) or name == "__version__", name
"""
    )
    assert code == 0, output
