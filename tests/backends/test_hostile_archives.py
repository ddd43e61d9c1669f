"""Archives of frameworks that would run code, wait for ever, or fill the memory."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest

from nn_meter.errors import NNMeterError
from nn_meter.kernel_detector.readers import read_model
from nn_meter.kernel_detector.readers.converted import _refuse_old_keras

MIB = 2**20


class Touch:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    torch = pytest.importorskip("torch", reason="needs torch, which is not installed")
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    exported = torch.export.export(torch.nn.Sequential(torch.nn.ReLU()), (torch.ones(1, 4),))
    torch.export.save(exported, path)
    return path


def test_code_in_an_exported_program_is_not_run(program, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch, which is not installed")
    mark, pickles = tmp_path / "mark", 0
    payload = io.BytesIO()
    torch.save(Touch(mark), payload)
    members = {}
    with zipfile.ZipFile(program) as file:
        for name in file.namelist():
            members[name] = file.read(name)
            if name.endswith(".pt"):  # example inputs, which torch keeps as a pickle
                members[name], pickles = payload.getvalue(), pickles + 1
    assert pickles
    spoilt = tmp_path / "spoilt.pt2"
    with zipfile.ZipFile(spoilt, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    with pytest.raises(NNMeterError, match=r"spoilt\.pt2"):
        read_model(spoilt)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Touch(mark)))
    assert mark.exists()  # so it would have been


def test_compiled_kernels_are_not_loaded(tmp_path):
    path = archive(tmp_path / "model.pt2", {"model/data/aotinductor/model/x.so": b"\x7fELF"})
    with pytest.raises(NNMeterError, match=r"model\.pt2: it holds compiled kernels"):
        read_model(path)


@pytest.mark.parametrize("suffix", [".keras", ".pt2"])
def test_an_archive_of_zeros_is_not_unpacked(tmp_path, suffix):
    path = archive(tmp_path / f"model{suffix}", {"config.json": bytes(300 * MIB)})
    assert path.stat().st_size < MIB
    with pytest.raises(NNMeterError, match=r"would have 314572800 bytes once unpacked"):
        read_model(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".pt2"])
def test_a_pipe_is_not_waited_for(tmp_path, suffix):
    os.mkfifo(tmp_path / f"model{suffix}")
    with pytest.raises(NNMeterError, match="is no regular file"):
        read_model(tmp_path / f"model{suffix}")


def test_a_pipe_in_a_saved_model_is_not_waited_for(tmp_path):
    (tmp_path / "m" / "variables").mkdir(parents=True)
    (tmp_path / "m" / "saved_model.pb").write_bytes(b"x")
    os.mkfifo(tmp_path / "m" / "variables" / "variables.index")
    with pytest.raises(NNMeterError, match=r"variables\.index is no regular file"):
        read_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("version", "safe"), [("3.5.0", False), ("3.11.2", False), ("3.15.1", True)]
)
def test_a_keras_that_runs_code_of_files_is_refused(version, safe):
    if safe:
        _refuse_old_keras(Path("m.h5"), version)
        return
    with pytest.raises(NNMeterError, match=r"m\.h5: Keras .* runs code.*keras>=3\.11\.3"):
        _refuse_old_keras(Path("m.h5"), version)
