# The steps of CI, one recipe each: `just test`, `just ci`. They call the same script that CI calls.

default:
    @just --list

# Everything, as CI does it.
ci:
    .ci/run

fmt:
    cargo fmt --all

clippy:
    .ci/run clippy

doc:
    .ci/run doc

test:
    .ci/run test

checked:
    .ci/run checked

backends:
    .ci/run backends

python:
    .ci/run python

trackers:
    .ci/run trackers

# A federation on the bundled digits.
run *ARGS:
    cargo run --release -- run {{ARGS}}

# Writes docs/results.md anew; runs that are there already are not repeated.
results:
    cargo run --release -- sweep examples/sweeps/algorithms.toml examples/sweeps/communication.toml examples/sweeps/predecessor.toml examples/sweeps/attacks.toml examples/sweeps/stragglers.toml --results docs/results.md

independence:
    .ci/run independence

examples:
    .ci/run setup main_job examples

manifests:
    .ci/run manifests

dashboard:
    .ci/run dashboard

images:
    .ci/run images
