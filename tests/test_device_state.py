"""What NVML says of a device at work. The counters are a stand-in's: a hot or power-starved GPU cannot be had on demand."""

import json
import subprocess
from types import SimpleNamespace

import pytest
from quantbench import device_state
from quantbench.device_state import DeviceState, find_device, reasons_in_words, throttled, visible_device


class NvmlError(Exception):
    pass


class FakeNvml:
    """Two GPUs, alike but for their UUIDs, in a driver that answers only what `answers` holds."""

    NVMLError = NvmlError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    uuids = ("GPU-1111aaaa-0000", "GPU-2222bbbb-0000")

    def __init__(self, **answers):
        self.answers = answers

    def nvmlDeviceGetCount(self):
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index):
        if index >= len(self.uuids):
            raise NvmlError("Invalid Argument")
        return index

    def nvmlDeviceGetUUID(self, handle):
        return self.uuids[handle]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle):
        return 1

    def nvmlDeviceGetClockInfo(self, handle, clock):
        return {1: 1980, 2: 3201}[clock]

    def __getattr__(self, function):
        def answer(*arguments):
            if function not in self.answers:
                raise NvmlError("Not Supported")
            return self.answers[function]

        return answer


@pytest.fixture
def device(monkeypatch):
    def state(**answers):
        monkeypatch.setattr(device_state, "load_nvml", lambda: FakeNvml(**answers))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        return DeviceState("cuda")

    return state


@pytest.mark.parametrize(
    "bits, words",
    [
        (0, []),
        # 0x44 = 0x40 + 0x04
        (0x44, ["software power cap", "hardware thermal slowdown"]),
        (0x01, ["idle"]),
        (0x4000, ["reason 0x4000"]),
    ],
)
def test_reasons_are_said_in_words(bits, words):
    assert reasons_in_words(bits) == words


@pytest.mark.quantize
def test_the_bits_are_those_of_nvml(quantize_python):
    # whose environment has NVIDIA's binding of NVML
    kept = "{name: bit for name, bit in vars(pynvml).items() if name.startswith('nvmlClocksEventReason')}"
    show = f"import json, pynvml; print(json.dumps({kept}))"
    bits = json.loads(subprocess.run([quantize_python, "-c", show], capture_output=True, text=True, check=True).stdout)
    names = {
        "GpuIdle": "idle", "ApplicationsClocksSetting": "clocks set by the administrator",
        "SwPowerCap": "software power cap", "HwSlowdown": "hardware slowdown", "SyncBoost": "sync boost",
        "SwThermalSlowdown": "software thermal slowdown", "HwThermalSlowdown": "hardware thermal slowdown",
        "HwPowerBrakeSlowdown": "hardware power brake", "DisplayClockSetting": "display clock",
    }  # fmt: skip
    for name, words in names.items():
        assert reasons_in_words(bits[f"nvmlClocksEventReason{name}"]) == [words]


def test_heat_and_the_power_supply_spoil_a_repeat_but_the_rated_power_does_not():
    assert throttled(["software power cap", "idle", "clocks set by the administrator"]) == []
    for bit in (0x08, 0x20, 0x40, 0x80):
        assert throttled(reasons_in_words(bit | 0x04)) == reasons_in_words(bit)
    # not sampled, as on a CPU
    assert throttled(None) == []


@pytest.mark.parametrize(
    "environ, device",
    [({}, "0"), ({"CUDA_VISIBLE_DEVICES": "3,1"}, "3"), ({"CUDA_VISIBLE_DEVICES": " GPU-12ab , 1"}, "GPU-12ab"),
     ({"CUDA_VISIBLE_DEVICES": ""}, None), ({"CUDA_VISIBLE_DEVICES": "-1"}, None)],
)  # fmt: skip
def test_the_device_is_the_first_that_cuda_shows(environ, device):
    assert visible_device(environ) == device


@pytest.mark.parametrize(
    "device, handle",
    [("1", 1), ("GPU-2222bbbb-0000", 1), ("GPU-1111", 0), ("MIG-whatever", 1),
     # two devices begin so; none does; there is no third
     ("GPU-", None), ("GPU-3", None), ("2", None)],
)  # fmt: skip
def test_a_device_is_found_by_index_or_by_the_beginning_of_its_uuid(device, handle):
    assert find_device(FakeNvml(), device) == handle


def test_the_device_torch_computes_on_comes_before_what_the_environment_says(monkeypatch, device):
    # CUDA orders devices by speed, the driver by slot: what is 1 for one may be 0 for the other.
    monkeypatch.setattr(device_state, "torch_uuid", lambda: "GPU-1111aaaa-0000")
    assert device()._handle == 0


def test_a_sample_is_in_si_units(device):
    state = device(
        nvmlDeviceGetPowerUsage=698_500, nvmlDeviceGetTemperature=61, nvmlDeviceGetCurrentClocksEventReasons=0x24
    )
    assert state.sample() == {
        "sm_clock_hz": 1_980_000_000, "memory_clock_hz": 3_201_000_000, "temperature_c": 61, "power_w": 698.5,
        "throttle_reasons": ["software power cap", "software thermal slowdown"],
    }  # fmt: skip


def test_what_a_device_does_not_tell_is_null(device):
    state = device().sample()
    assert state["sm_clock_hz"] == 1_980_000_000
    assert state["power_w"] is state["temperature_c"] is state["throttle_reasons"] is None
    assert device().describe()["ecc"] is None and device().processes() is None


def test_an_older_driver_gives_the_reasons_by_their_older_name(device):
    state = device(nvmlDeviceGetCurrentClocksThrottleReasons=0x08).sample()
    assert throttled(state["throttle_reasons"]) == ["hardware slowdown"]


def test_ecc_that_a_restart_would_turn_on_is_off(device):
    assert device(nvmlDeviceGetEccMode=[0, 1]).describe()["ecc"] is False


def test_a_process_is_named_once_and_without_its_arguments(device):
    held = SimpleNamespace(pid=7, usedGpuMemory=1 << 30)
    state = device(
        nvmlDeviceGetComputeRunningProcesses=[held],
        nvmlDeviceGetGraphicsRunningProcesses=[held],
        nvmlSystemGetProcessName="/usr/bin/python serve.py --api-key=secret",
    )
    assert state.processes() == [{"pid": 7, "name": "python", "memory_bytes": 1 << 30}]


@pytest.mark.parametrize("device_type, visible", [("cpu", "0"), ("cuda", "")])
def test_where_there_is_no_device_nothing_is_sampled(monkeypatch, device_type, visible):
    monkeypatch.setattr(device_state, "load_nvml", FakeNvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    state = DeviceState(device_type)
    assert set(state.sample().values()) == set(state.describe().values()) == {None} and state.processes() is None


def test_a_machine_without_a_driver_has_no_nvml():
    state = DeviceState("cuda") if device_state.load_nvml() is None else None
    if state is None:
        pytest.skip("this machine has an NVIDIA driver")
    assert set(state.sample()) == set(device_state.FIELDS) and set(state.sample().values()) == {None}
