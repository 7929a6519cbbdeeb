"""A saved head behind HTTP: start the server, ask it, stop it.

Run: python examples/serve_and_call.py ARTEFACT TEXT...
where ARTEFACT is a folder that `convex-heads fit` wrote (extra: serve).
"""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

if len(sys.argv) < 3:
    sys.exit(__doc__)
artefact, texts = sys.argv[1], sys.argv[2:]

with socket.socket() as free:  # any port that nobody uses
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
address = f"http://127.0.0.1:{port}"
command = [sys.executable, "-Pm", "tasks.cli", "serve", artefact, "--port", str(port), "--quiet"]
server = subprocess.Popen(command)
try:
    while True:
        if server.poll() is not None:
            sys.exit("the server did not start")
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
            break
        except urllib.error.URLError:
            time.sleep(0.2)
    request = urllib.request.Request(
        f"{address}/predict",
        json.dumps({"inputs": texts, "top_k": 2}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        for text, found in zip(texts, json.load(answer)["predictions"], strict=True):
            print(f"{found['label']:12s} {found['score']:.3f}  {text}")
finally:
    server.terminate()  # what was taken is answered, then it ends
    server.wait(30)
