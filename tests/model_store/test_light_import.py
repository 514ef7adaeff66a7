"""Speaking of versions needs neither PyTorch nor what loads them."""

import subprocess
import sys

import model_store


def test_a_reference_does_not_load_pytorch() -> None:
    program = "import sys; from model_store import Reference, StoreError; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_every_name_is_there() -> None:
    assert all(getattr(model_store, name) is not None for name in model_store.__all__)
