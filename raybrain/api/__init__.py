"""What notebooks and scripts use; `raybrain` itself gives these names.

Read `running` first: the command line is `Experiment.load` and `run`.
"""
