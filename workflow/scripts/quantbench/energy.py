"""Energy that the devices of a measurement drew, over exactly the measured window.

NVIDIA devices: NVML's power, sampled by a thread and integrated by trapezoids. A CPU: the energy counters of its packages
(RAPL) where they may be read, which many systems keep from users. Elsewhere nothing is known, and nothing is said.
Imports neither torch nor vLLM.
"""

import itertools
import threading
import time
from pathlib import Path

from quantbench.device_state import find_device, load_nvml, visible_devices
from quantbench.serving_points import POISSON

# NVML's own readings change some ten times a second.
INTERVAL_S = 0.1
# With a longer gap between two readings, what happened in it is a guess: the window's energy does not count.
LONGEST_GAP_S = 3.0
# NVML's power is a mean over a second (from Ampere on, but the A100): a shorter window shows what was before it.
LEAST_WINDOW_S = 2.0

# Stages whose energy is measured: those whose time is.
METERED = ("latency", "throughput", "serving")
RAPL = Path("/sys/class/powercap")
MICROJOULES = 1e-6


class EnergyMeter:
    """Energy of this process's devices. Use as `with meter: ...`; afterwards `meter.record` is the window's, or None.

    record   {"joules", "seconds", "largest_gap_s", "valid"}
    read     returns the power in W (`counts` False), or the joules since some time (`counts` True); None: no meter here
    """

    def __init__(self, read, counts=False):
        self._read, self._counts, self.record = read, counts, None

    def __enter__(self):
        self.record = None
        if self._read:
            self._readings, self._done = [self._reading()], threading.Event()
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error):
        if self._read:
            self._done.set()
            self._thread.join()
            self._readings.append(self._reading())
            self.record = summed(self._readings, self._counts)

    def _reading(self):
        return time.perf_counter(), self._read()

    def _sample(self):
        while not self._done.wait(INTERVAL_S):
            self._readings.append(self._reading())


NO_METER = EnergyMeter(None)


def summed(readings, counts):
    """The record of a window's readings [(seconds, W or J; None: not answered)], in order of time. None without two."""
    known = [reading for reading in readings if reading[1] is not None]
    if len(known) < 2:
        return None
    pairs = list(itertools.pairwise(known))
    if counts:
        joules = sum(after[1] - before[1] for before, after in pairs)
    else:
        joules = sum((after[0] - before[0]) * (before[1] + after[1]) / 2 for before, after in pairs)
    ends = [readings[0][0], *(when for when, _ in known), readings[-1][0]]
    gap = max(after - before for before, after in itertools.pairwise(ends))
    record = {"joules": joules, "seconds": known[-1][0] - known[0][0], "largest_gap_s": gap}
    return record | {"valid": gap <= LONGEST_GAP_S and (counts or record["seconds"] >= LEAST_WINDOW_S)}


def meter(gpu_entry, devices=1):
    """The meter of a job's device: its first `devices` GPUs, or the whole CPU."""
    if gpu_entry["environment"].endswith("-cpu"):
        packages = Rapl()
        return EnergyMeter(packages.joules if packages.found else None, counts=True)
    return EnergyMeter(nvml_power(devices))


def nvml_power(devices):
    """A function that returns the power of the first `devices` GPUs that CUDA shows, in W; None without a driver."""
    nvml = load_nvml()
    handles = [find_device(nvml, name) for name in visible_devices(devices)] if nvml else []
    if not handles or None in handles:
        return None

    def read():
        try:
            # In mW.
            return sum(nvml.nvmlDeviceGetPowerUsage(handle) for handle in handles) / 1000
        except nvml.NVMLError:
            return None

    return read


class Rapl:
    """Energy counters of a CPU's packages (Linux powercap: intel-rapl:0, :1, ...; AMD's are named so too)."""

    def __init__(self, folder=RAPL):
        self._last, self._total = {}, 0.0
        # Subzones (intel-rapl:0:0) are parts of their package.
        zones = [zone for zone in sorted(Path(folder).glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self.found = [zone for zone in zones if _counter(zone, "energy_uj") is not None]

    def joules(self):
        """Joules since the first call, all packages; None where a counter is no longer answered."""
        for zone in self.found:
            now, last = _counter(zone, "energy_uj"), self._last.get(zone)
            if now is None:
                return None
            if last is not None:
                # A counter begins again at 0 beyond its range.
                around = _counter(zone, "max_energy_range_uj") or 0
                self._total += (now - last if now >= last else now - last + around) * MICROJOULES
            self._last[zone] = now
        return self._total


def _counter(zone, name):
    try:
        return int((zone / name).read_text())
    except (OSError, ValueError):
        return None


# --- the table ------------------------------------------------------------------------------------------------------


def energy_rows(point, record, keys):
    """The row of a point in the table energy; none of a point that was not metered.

    keys  of the point, as in every table
    """
    if not record.get("energy") or record["status"] != "ok":
        return []
    drawn, params = record["energy"], point["identity"]["params"]
    row = keys | {"start": point.get("start", 1), "stage": point["stage"], "point_key": point["key"]} | drawn
    row |= {name: params.get(name) for name in ("batch_size", "load", "rate_per_s", "concurrency")}
    row["burstiness"] = params.get("burstiness", POISSON) if params.get("load") == "rate" else None
    row |= {f"{name}_asked": params.get(name) for name in ("input_tokens", "output_tokens")}
    tokens = _tokens(point["stage"], params, record["rows"])
    row |= {
        "workload": point.get("workload"),
        "output_tokens": tokens,
        "mean_power_w": drawn["joules"] / drawn["seconds"],
    }
    return [row | {"joules_per_token": drawn["joules"] / tokens if drawn["valid"] else None}]


def _tokens(stage, params, rows):
    """Tokens generated in the measured window."""
    if stage == "serving":
        return sum(row["output_tokens"] for row in rows)
    # A batch of a workload says what it has; any other is what was asked.
    each = params["batch_size"] * (params.get("output_tokens") or 0)
    return sum(row.get("total_output_tokens", each) for row in rows)
