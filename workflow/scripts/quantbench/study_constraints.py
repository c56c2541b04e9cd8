"""What a study's constraints need, and everything wrong with them before anything runs."""


def reference_faults(config):
    """Constraints on what the study does not measure. Without an SLO or prices, which cost no measurement, the report says so."""
    limits, serving, faults = config.get("constraints") or {}, config.get("serving") or {}, []
    if limits.get("recovery") is not None and not config.get("accuracy"):
        faults.append("constraints.recovery: section accuracy is missing, which measures it")
    by_rate = [rate for rate in serving.get("request_rates", []) if not isinstance(rate, str)]
    if limits.get("load_per_s") is not None and not by_rate and not serving.get("search"):
        measures = "which say what one device carries"
        faults.append(
            f"constraints.load_per_s: give serving.request_rates (numbers) or serving.search, {measures}; closed loops do not"
        )
    return faults
