"""Per-layer errors of a checkpoint: their points, and the rows of table `layers`. Pure; quantize/layer_error.py measures them.

A point compares a checkpoint with the 16-bit model on texts of one of the study's calibrations, or, in a study without one,
the weights alone. It belongs to no device: the job that makes the checkpoint measures it, for a stored checkpoint as well.
"""

from quantbench.calibrations import calibrations, identity, label
from quantbench.keys import key

# Raised by hand, with the reason beside it, when what is measured changes.
PROTOCOL = 1


def layer_points(config, checkpoint, dataset_keys):
    """Points of a checkpoint that was quantized here, one per calibration of the study, as the manifest's `layers` has them."""
    if not checkpoint["quantized"]:
        return []
    return [_point(checkpoint, calibration, dataset_keys) for calibration in calibrations(config) or [None]]


def _point(checkpoint, calibration, dataset_keys):
    found = {
        "artefact": "point",
        "stage": "layers",
        "gpu": None,
        "protocol": PROTOCOL,
        "checkpoint": checkpoint["key"],
        "params": {"texts": calibration and identity(calibration, dataset_keys)},
    }
    return {
        "key": key(found),
        "stage": "layers",
        "gpu": None,
        "model": checkpoint["model"],
        "scheme": checkpoint["scheme"],
        "texts": calibration and label(calibration),
        "identity": found,
    }


def layer_rows(manifest, store):
    """Rows of table `layers` of the points that the store has, in the manifest's order."""
    rows = []
    for point in manifest.get("layers", []):
        record = store.read_point(point["key"])
        if record is None:
            continue
        keys = {name: record[name] for name in ("run_id", "status", "reason")}
        keys |= {name: point[name] for name in ("model", "scheme", "texts")}
        rows += [keys | row for row in record["rows"]] or [keys]
    return rows
