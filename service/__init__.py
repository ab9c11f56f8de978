"""The trainer as a service: a queue of the command line's own jobs over a directory of stores and runs, an HTTP API and a web page.

    paths.py       what a client may name: relative paths that stay inside the root
    offered.py     the command line's commands and options, as data
    commands.py    which of them are jobs, what they read and write, and how they go on after an interruption
    jobs.py        a job, as it is kept
    queue.py       the queue, in SQLite
    schedule.py    which queued jobs may start now
    keeper.py      a small process that stays with a job and writes down how it ended
    locks.py       flock: who is alive, told by the kernel
    runner.py      what runs jobs, and the local one
    slurm.py       the one for Slurm
    manager.py     the loop: recover, watch, start, stop
    progress.py    how far a job has come, and what is left
    catalogue.py   the stores and runs under the root
    guard.py       what a request must look like
    api.py         the HTTP API; events.py its streams; page.py the web page
    client.py      the API from Python and from the command line

Nothing here imports torch, numpy or zarr: the service stays small, and what a job does to memory is the job's own matter.
"""
