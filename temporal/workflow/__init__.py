"""A workflow: one TOML file with everything from videos to a figure, checked as a whole, run stage by stage.

options    of `vfz run`
file       the file: tables, stages, and how messages name them
check      the stages against each other, before the first begins
run        what is not done yet, in order
report     what is told of it
"""
