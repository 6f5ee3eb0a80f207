"""What was trained, asked about videos: `vfz predict`.

options       of the command
predict       the public call, `predict`; its report
predictors    a run, or a saved probe, as what answers for clips of tokens
clips         the clips of cached videos, or of new ones that are decoded and encoded for it
rows          answers as rows of CSV or JSON lines, written as they come
"""
