"""What `vfz probe` does for truths other than classes; that is in `vfz.temporal.probes.run`.

values   probes of several labels a video, and of numbers
dense    readouts of boxes, points, depth and pose
"""
