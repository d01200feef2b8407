# One line a target. Each does its own set-up; a second call is quick. `make test ARGS="-k postfix"` reaches pytest.

.PHONY: run test quick style types coverage fuzz campaign campaign-damage bench bench-callahead dist clean

run: ; @tools/setup run && exec tools/run $(ARGS)
test: ; @tools/setup test && exec tools/check $(ARGS)
quick: ; @tools/setup run && exec .venv/bin/python -m pytest -q -m "not daemon and not mta and not cyrus" $(ARGS)
style: ; @tools/setup run && exec .venv/bin/ruff check .
types: ; @tools/setup run && exec .venv/bin/mypy
coverage: ; @tools/setup test && .venv/bin/python -m coverage run -m pytest -q $(ARGS); exec .venv/bin/python -m coverage report --fail-under=100
fuzz: ; @tools/setup run && exec tools/fuzz $(ARGS)
campaign: ; @tools/setup test && PYTHONPATH=core:milter:socketmap:daemon:. exec .venv/bin/python -m tests.campaign.differential $(ARGS)
campaign-damage: ; @tools/setup test && PYTHONPATH=core:. exec .venv/bin/python -m tests.campaign.damage $(ARGS)
bench: ; @tools/setup test && PYTHONPATH=core:milter:socketmap:daemon:. exec .venv/bin/python -m benchmarks $(ARGS)
bench-callahead: ; @tools/setup run && PYTHONPATH=core:milter:socketmap:daemon:. exec .venv/bin/python -m benchmarks.callahead $(ARGS)
dist: ; @tools/setup run && .venv/bin/python -m pip wheel -q --no-deps --wheel-dir dist . && ls -1 dist
clean: ; rm -rf .venv .run .coverage* build dist *.egg-info core/*.egg-info
