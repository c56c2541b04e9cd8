"""What a CUDA device does while it is timed: clocks, temperature, power and why it slows down, from NVML.

NVML reads the driver's counters without a CUDA context and without waiting for the device. It knows nothing of
CUDA_VISIBLE_DEVICES, so the device of this process is looked up by its UUID. Imports neither torch nor vLLM at the top.
"""

import importlib
import itertools
import os
import sys

# Bits of nvmlDeviceGetCurrentClocksEventReasons, in words (nvml.h, nvmlClocksEventReason*; the last two are only in
# older headers, as nvmlClocksThrottleReason*).
REASONS = {
    0x001: "idle",
    0x002: "clocks set by the administrator",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x100: "display clock",
    0x200: "board limit",
    0x400: "reliability",
}
# Something is wrong with the machine: heat, or power that the rack cannot deliver. A number measured then says nothing
# about the device. The software power cap is not among them: it is how a device keeps to its rated power under dense
# products, where peak rates are quoted at the boost clock (NVIDIA H100 white paper). Without it no large product would
# count; it is sampled, and the clock beside it says what it cost. So are clocks that an administrator has locked.
INVALIDATING = (
    "hardware slowdown",
    "software thermal slowdown",
    "hardware thermal slowdown",
    "hardware power brake",
)
FIELDS = ("sm_clock_hz", "memory_clock_hz", "temperature_c", "power_w", "throttle_reasons")


def reasons_in_words(bits):
    """Names of the set bits of a clock event mask, lowest first; a bit without a name keeps its number."""
    masks = (1 << position for position in range(bits.bit_length()))
    return [REASONS.get(mask, f"reason {mask:#x}") for mask in masks if bits & mask]


def throttled(reasons):
    """Those of the sampled reasons that make a repeat invalid; empty for none, and where nothing was sampled (None)."""
    return [reason for reason in reasons or [] if reason in INVALIDATING]


def visible_device(environ=os.environ):
    """The device that CUDA shows this process first: an index or (part of) a UUID as text; None when it shows none.

    An index counts as the driver counts only under CUDA_DEVICE_ORDER=PCI_BUS_ID, or where all devices are alike.
    """
    return next(iter(visible_devices(1, environ)), None)


def visible_devices(most, environ=os.environ):
    """The first `most` devices that CUDA shows this process, as `visible_device`; fewer where it shows fewer."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in range(most)]
    # CUDA stops at the first that is none.
    shown = [name.strip() for name in visible.split(",")]
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), shown))[:most]


def torch_uuid():
    """UUID of the CUDA device this process computes on, once it has touched one; None before."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return "GPU-" + str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid).removeprefix("GPU-")


def load_nvml():
    """NVIDIA's binding of NVML, initialized; None where there is no binding or no driver."""
    # The second is the copy that vLLM carries; importing it imports much of vLLM.
    for name in ("pynvml", "vllm.third_party.pynvml"):
        try:
            nvml = importlib.import_module(name)
        except ImportError:
            continue
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            return None
        return nvml
    return None


def find_device(nvml, device):
    """NVML's handle of a device named by its index or by (the beginning of) its UUID; None when there is no such one.

    A MIG instance has no clocks of its own: its handle is that of the GPU it is a slice of.
    """
    try:
        if device.isdigit():
            return nvml.nvmlDeviceGetHandleByIndex(int(device))
        if device.startswith("MIG-"):
            return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvml.nvmlDeviceGetHandleByUUID(device))
        # Not nvmlDeviceGetHandleByUUID: CUDA_VISIBLE_DEVICES may hold only the beginning.
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        found = [handle for handle in handles if nvml.nvmlDeviceGetUUID(handle).startswith(device)]
    except nvml.NVMLError:
        return None
    return found[0] if len(found) == 1 else None


class DeviceState:
    """The state of this process's device, sampled again and again; of a CPU, nothing.

    Where torch has initialized CUDA, the device is the one torch computes on, else the first that CUDA shows.
    """

    def __init__(self, device_type):
        """device_type is "cuda" or "cpu"."""
        self._nvml = load_nvml() if device_type == "cuda" else None
        named = [torch_uuid(), visible_device()] if self._nvml else []
        handles = (find_device(self._nvml, device) for device in named if device is not None)
        self._handle = next((handle for handle in handles if handle is not None), None)

    def sample(self):
        """Now: {sm_clock_hz, memory_clock_hz, temperature_c, power_w, throttle_reasons: [text]}; null: not known.

        Take it while the work to judge is still queued: after waiting for the device it shows one that idles.
        power_w is NVML's, from Ampere on (but the A100) a mean over the last second.
        """
        if self._handle is None:
            return dict.fromkeys(FIELDS)
        nvml, handle = self._nvml, self._handle
        power_mw = self._ask("nvmlDeviceGetPowerUsage", handle)
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if bits is None:
            # Drivers before 535 have it by its older name.
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return {
            "sm_clock_hz": _hz(self._ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM)),
            "memory_clock_hz": _hz(self._ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM)),
            "temperature_c": self._ask("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": None if power_mw is None else power_mw / 1e3,
            "throttle_reasons": None if bits is None else reasons_in_words(bits),
        }

    def describe(self):
        """What does not change in a run: {max_sm_clock_hz, max_memory_clock_hz, power_limit_w, ecc}; null: not known.

        ecc is whether memory errors are corrected, null for a device that cannot.
        """
        if self._handle is None:
            return dict.fromkeys(("max_sm_clock_hz", "max_memory_clock_hz", "power_limit_w", "ecc"))
        nvml, handle = self._nvml, self._handle
        limit_mw = self._ask("nvmlDeviceGetEnforcedPowerLimit", handle)
        ecc = self._ask("nvmlDeviceGetEccMode", handle)
        return {
            "max_sm_clock_hz": _hz(self._ask("nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM)),
            "max_memory_clock_hz": _hz(self._ask("nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_MEM)),
            "power_limit_w": None if limit_mw is None else limit_mw / 1e3,
            # [now, after the next restart]
            "ecc": None if ecc is None else bool(ecc[0]),
        }

    def processes(self):
        """Processes that hold memory of the device: [{"pid", "name", "memory_bytes"}]; None when that is not known.

        This one is among them from the moment it touches CUDA. In a container, pids are those of the host.
        """
        if self._handle is None:
            return None
        found = {}
        for kind in ("Compute", "Graphics"):
            processes = self._ask(f"nvmlDeviceGet{kind}RunningProcesses", self._handle)
            if processes is None:
                return None
            for process in processes:
                # The name may be a whole command line, with what is secret in it.
                name = (self._ask("nvmlSystemGetProcessName", process.pid) or "").split(" ")[0]
                found[process.pid] = {
                    "pid": process.pid,
                    "name": os.path.basename(name) or None,
                    "memory_bytes": process.usedGpuMemory,
                }
        return [found[pid] for pid in sorted(found)]

    def _ask(self, function, *arguments):
        """NVML's answer; None where this device, driver or user gets none."""
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError:
            return None


def _hz(mhz):
    return None if mhz is None else mhz * 1_000_000
