import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import optuna
import pytest

from mft_ray.errors import UserError
from mft_ray.report.study_server import open_server


@pytest.fixture
def run(tmp_path):
    """A run folder with a real study of three trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}", study_name="masks", direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("ratio", 0.02, 0.5), n_trials=3)
    return tmp_path


def fetch(address):
    # Straight to the address, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=20) as answer:
        return answer.status, answer.read().decode()


def test_command_serves_the_study_until_it_is_stopped(run):
    command = [sys.executable, "-m", "mft_ray", "dashboard", str(run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address, line + process.stderr.read()
        status, page = fetch(address[0] + "/dashboard")
        assert status == 200
        assert "<html" in page.lower()
        _, studies = fetch(address[0] + "/api/studies")
        assert [study["study_name"] for study in json.loads(studies)["study_summaries"]] == ["masks"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_a_run_folder_of_any_name(run, tmp_path):
    folder = tmp_path / "a%20b [v2]#1?"
    folder.mkdir()
    (run / "study.db").rename(folder / "study.db")
    server = open_server(folder, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        _, studies = fetch(f"http://127.0.0.1:{server.server_port}/api/studies")
    finally:
        server.shutdown()
        server.server_close()
    assert [study["study_name"] for study in json.loads(studies)["study_summaries"]] == ["masks"]


def test_port_in_use_is_an_error_only_if_it_was_asked_for(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}"):
            open_server(run, port=port)


def test_default_port_gives_way_to_a_free_one(run):
    first = open_server(run)
    second = open_server(run)
    try:
        assert first.server_port != second.server_port
        thread = threading.Thread(target=second.serve_forever)
        thread.start()
        assert fetch(f"http://127.0.0.1:{second.server_port}/api/studies")[0] == 200
        second.shutdown()
        thread.join(timeout=20)
    finally:
        first.server_close()
        second.server_close()


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
def test_address_of_another_machine(run, host):
    with pytest.raises(UserError, match="Cannot listen"):
        open_server(run, host=host)


def test_port_out_of_range(run):
    with pytest.raises(UserError, match="70000 is not a port"):
        open_server(run, port=70000)


def test_no_study(tmp_path):
    with pytest.raises(UserError, match="no study"):
        open_server(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a database at all, whatever its name says"])
def test_not_a_study_is_left_alone(tmp_path, content):
    database = tmp_path / "study.db"
    database.write_bytes(content)
    with pytest.raises(UserError, match="not an Optuna study"):
        open_server(tmp_path)
    assert database.read_bytes() == content
    assert os.listdir(tmp_path) == ["study.db"]


def test_command_ends_with_2_on_a_users_mistake(tmp_path):
    command = [sys.executable, "-m", "mft_ray", "dashboard", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no study" in done.stderr
    assert "Traceback" not in done.stderr
