"""The keys of ``backend_config.yaml`` that only one runtime has."""

from __future__ import annotations

import logging

import pytest
import yaml

from nn_meter.builder.backends.openvino.settings import OpenVINOSettings
from nn_meter.builder.backends.tflite.settings import TFLiteSettings
from nn_meter.builder.config import render_template, validate
from nn_meter.errors import ConfigError

OLD_KEYS = ["OPENVINO_ENV", "OPTIMIZER_PATH", "OPENVINO_RUNTIME_DIR", "DEVICE_SERIAL", "DATA_TYPE"]
PHONE = {
    "REMOTE_MODEL_DIR": "/sdcard/models",
    "BENCHMARK_MODEL_PATH": "/data/local/tmp/benchmark_model",
    "DEVICE_SERIAL": "0123",
    "KERNEL_PATH": None,
}


def read(cls, **keys):
    return validate(cls, keys, "backend_config.yaml").as_dict()


def test_tflite_does_not_run_before_it_is_told_where():
    with pytest.raises(ConfigError, match=r"TARGET must be host .* or android .* found nothing"):
        read(TFLiteSettings, THREADS=1)


@pytest.mark.parametrize("target", ["phone", "", None, 1, True, ["host"]])
def test_tflite_knows_two_targets(target):
    with pytest.raises(ConfigError, match=r"TARGET must be host .* or android"):
        read(TFLiteSettings, TARGET=target)


@pytest.mark.parametrize("target", ["host", "android", "HOST"])
def test_tflite_keys_reach_the_backend(target):
    found = read(TFLiteSettings, TARGET=target, **PHONE)
    assert found["TARGET"] == target.lower()
    assert {key: found[key] for key in PHONE} == PHONE


def test_a_serial_number_of_digits_needs_quotes():
    places = {"REMOTE_MODEL_DIR": "/data/m", "BENCHMARK_MODEL_PATH": "/data/b"}
    with pytest.raises(ConfigError, match=r"DEVICE_SERIAL must be text .in quotes .* found 123"):
        read(TFLiteSettings, TARGET="android", DEVICE_SERIAL=123, **places)


@pytest.mark.parametrize("key", ["REMOTE_MODEL_DIR", "BENCHMARK_MODEL_PATH"])
@pytest.mark.parametrize("value", [None, "", "models", "/data/../m", "/data/\0"])
def test_a_phone_needs_places_on_it(key, value):
    places = {"REMOTE_MODEL_DIR": "/data/m", "BENCHMARK_MODEL_PATH": "/data/b", key: value}
    assert read(TFLiteSettings, TARGET="host", **places)[key] == value
    with pytest.raises(ConfigError, match=rf"{key} must be the absolute path of a .* on the phone"):
        read(TFLiteSettings, TARGET="android", **places)


@pytest.mark.parametrize("mask", ["g", "f0;", "0x", "", None, "f0", "0xF0"])
def test_a_mask_of_cores_is_hexadecimal(mask):
    if mask in ("g", "f0;", "0x"):
        with pytest.raises(ConfigError, match="TASKSET must be a hexadecimal number"):
            read(TFLiteSettings, TARGET="host", TASKSET=mask)
    else:
        assert read(TFLiteSettings, TARGET="host", TASKSET=mask)["TASKSET"] == (mask or None)


def test_the_tflite_template_is_read_back_and_says_host():
    text = render_template(TFLiteSettings, "TFLite.", TARGET="host")
    assert "\nTARGET: host\n" in text
    found = validate(TFLiteSettings, yaml.safe_load(text), "template")
    assert found == TFLiteSettings(TARGET="host")


def test_the_openvino_template_has_no_old_keys(caplog):
    text = render_template(OpenVINOSettings, "OpenVINO.")
    found = validate(OpenVINOSettings, yaml.safe_load(text), "template")
    assert found.DEVICE is None  # the backend's own: NPU of openvino_vpu, GPU of openvino_gpu
    assert not [key for key in OLD_KEYS if key in text]
    assert not caplog.records


@pytest.mark.parametrize("value", ["", None, "/opt/intel", "FP16"])
@pytest.mark.parametrize("key", OLD_KEYS)
def test_an_old_key_of_openvino_is_accepted_and_named_as_without_effect(key, value, caplog):
    with caplog.at_level(logging.WARNING):
        assert read(OpenVINOSettings, **{key: value})["DEVICE"] is None
    (record,) = caplog.records
    assert f"without effect: {key};" in record.getMessage()


def test_all_old_keys_share_one_warning(caplog):
    read(OpenVINOSettings, **dict.fromkeys(OLD_KEYS, ""))
    (record,) = caplog.records
    assert ", ".join(OLD_KEYS) in record.getMessage()


@pytest.mark.parametrize("device", ["", 3, ["NPU"]])
def test_a_device_is_a_name(device):
    with pytest.raises(ConfigError, match=r"DEVICE must be the name of a device"):
        read(OpenVINOSettings, DEVICE=device)
