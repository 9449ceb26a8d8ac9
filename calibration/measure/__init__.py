"""`calibrate measure`: times the kernels of LLM inference on the device at hand and writes them as a timing table.

`cases` says what is timed and in which order, `ops` and its back ends (NumPy, torch) how a kernel is called,
`timers` how a call is timed, `loop` runs the list under a time budget and keeps the table on disk, `lab`
times whole steps of a model, `facts` records the machine.
"""
