"""The processes of `tts-serve`: one has the verifier, another one speaks HTTP.

Python runs one thread of a process at a time. In one process, reading requests and writing answers
would take turns with the verifier's own threads, which launch the work of a GPU. So would preparing
pictures for an ImageDoctor and making its verdicts, which a third process does.

    channel.py     what the processes send each other
    proxy.py       in the HTTP process: takes the dispatcher's place
    preparing.py   the preparing process, between the others
    verifier.py    in the verifier's process: starts the others and feeds the dispatcher
"""
