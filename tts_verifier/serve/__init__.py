"""`tts-serve`: a verifier behind HTTP, for trainers on other machines and anybody else.

    limits.py       what a request may take, and refusals
    bodies.py       a request's bytes, within the limits of size, time and memory
    pictures.py     bytes and arrays -> pictures, within the limit of pixels
    dispatcher.py   pairs of all clients -> the verifier, which one thread feeds
    answers.py      verdicts -> what the endpoints answer
    app.py          the endpoints: /v1/score, /compute, /v1/chat/completions, /health, /metrics
    processes/      between the process that speaks HTTP and the one that has the verifier
    server.py       connections, signals, an end that answers what it has

`SERVER.md` is the user's page. Needs the extra `serve`.
"""
