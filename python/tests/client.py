"""A client for the tests: moves every parameter a little and sends that. Settings come from the environment."""

import logging
import os
import time

import fl_client

logging.basicConfig(level=logging.INFO)
for round in fl_client.rounds():
    for array in round.state.values():
        array += 0.001
    # So that a kill finds a round in the middle.
    time.sleep(float(os.environ.get("TRAIN_S", "0")))
    print(round, round.send(round.state, num_samples=10, loss=1.0), flush=True)
