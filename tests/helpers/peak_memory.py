"""The most memory that tensors made by a function take at once, to the byte."""

from torch.profiler import ProfilerActivity, profile


def peak_bytes(function):
    """Peak of what `function` allocates on the CPU in this thread, beyond what was there before."""
    function()  # what is allocated once, such as `.grad`, and library start-up
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    records = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    taken = peak = 0
    for record in sorted(records, key=lambda record: record.start_ns()):
        taken += record.nbytes()
        peak = max(peak, taken)
    assert peak > 0
    return peak
