"""What every test shares: no network, and property tests that draw the same examples each time.

Fixtures of one part live beside its tests. Next: unit/, then parity/, flow/ and rules/.
"""

import os

import hypothesis

# Before any test imports a library that would look for its files on a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Tiny models gain nothing from more, and on a busy machine threads that wait for each other take
# minutes. Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("moestro", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("moestro")
