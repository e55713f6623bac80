"""The two processes of `tts-serve`: one has the verifier, the other one speaks HTTP.

Python runs one thread of a process at a time. In one process, reading requests and writing answers
would take turns with the verifier's own threads, which launch the work of a GPU.

    channel.py   what the processes send each other
    proxy.py     in the HTTP process: takes the dispatcher's place
    http.py      in the verifier's process: starts the HTTP process and feeds the dispatcher
"""
