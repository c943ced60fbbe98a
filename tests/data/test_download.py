import hashlib
import http.server
import importlib
import json
import threading
from pathlib import Path

import pytest

from genailab_pyro.data.download import DownloadError, cache_folder, download

module = importlib.import_module("genailab_pyro.data.download")

CONTENT = bytes(range(256)) * 40
CHANGED = CONTENT[::-1]


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        self.close_connection = True
        name = self.path.rsplit("/", 1)[-1].split("?")[0]
        if name == "missing.bin":
            self.send_error(404)
        elif name == "silent.bin":
            self.server.stop.wait(5)
        elif name == "moved.bin":
            self.send_response(302)
            self.send_header("Location", "/counts.bin")
            self.send_header("Connection", "close")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name == "chunked.bin":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"a\r\n" + CONTENT[:10] + b"\r\n")
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            if name == "stalled.bin":
                self.wfile.write(self.server.content[:1000])
                self.server.stop.wait(5)
            else:
                self.wfile.write(self.server.content[: 1000 if name == "truncated.bin" else None])


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.content, server.stop = [], CONTENT, threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.stop.set()
        server.shutdown()
        thread.join()


def fetch(server, name, folder, **options):
    return download(f"{server.url}/data/{name}", folder=folder, progress=False, **options)


def refusal(server, name, folder, **options):
    with pytest.raises(DownloadError) as caught:
        fetch(server, name, folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_is_downloaded_whole_and_its_checksum_recorded_at_first_use(server, tmp_path):
    path = fetch(server, "counts.bin", tmp_path / "new")
    assert path == tmp_path / "new" / "counts.bin"
    assert path.read_bytes() == CONTENT
    record = json.loads((tmp_path / "new" / "counts.bin.record.json").read_text())
    assert record == {"url": f"{server.url}/data/counts.bin", "sha256": sha256(CONTENT), "size": len(CONTENT)}


def test_a_second_call_does_not_touch_the_network(server, tmp_path):
    fetch(server, "counts.bin", tmp_path)
    fetch(server, "counts.bin", tmp_path)
    fetch(server, "counts.bin", tmp_path, sha256=sha256(CONTENT))
    assert server.asked == ["/data/counts.bin"]


def test_a_given_checksum_is_taken_in_either_case(server, tmp_path):
    assert fetch(server, "counts.bin", tmp_path, sha256=sha256(CONTENT).upper()).exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("truncated.bin", "the connection ended after 1000 of 10240 bytes"),
        ("chunked.bin", "the connection ended after"),
        ("missing.bin", "the server answered 404 Not Found"),
        ("silent.bin", "nothing came for 0.2 seconds"),
        ("stalled.bin", "nothing came for 0.2 seconds"),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_nothing_behind(server, tmp_path, name, words):
    message = refusal(server, name, tmp_path, timeout=0.2)
    assert words in message
    assert f"{server.url}/data/{name}" in message
    assert list(tmp_path.iterdir()) == []


def test_a_short_file_is_refused_even_where_the_network_library_accepts_it(server, tmp_path, monkeypatch):
    class Lenient(module.pooch.HTTPDownloader):
        def __call__(self, url, output, manager):
            response = module.requests.get(url, stream=True, timeout=5, hooks=self.kwargs["hooks"])
            with open(output, "wb") as file:
                file.write(response.raw.read(1000))

    monkeypatch.setattr(module.pooch, "HTTPDownloader", Lenient)
    assert "after 1000 of 10240 bytes" in refusal(server, "truncated.bin", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_named(server, tmp_path):
    with pytest.raises(DownloadError, match=r"^http://127\.0\.0\.1:1/x could not be downloaded: .*reached"):
        download("http://127.0.0.1:1/x", folder=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_checksum_is_refused_with_both_checksums_and_leaves_nothing_behind(server, tmp_path):
    message = refusal(server, "counts.bin", tmp_path, sha256="0" * 64)
    assert "0" * 64 in message
    assert sha256(CONTENT) in message
    assert str(tmp_path / "counts.bin") in message
    assert list(tmp_path.iterdir()) == []


def test_a_tampered_file_is_refused_and_can_be_accepted(server, tmp_path):
    path = fetch(server, "counts.bin", tmp_path)
    path.write_bytes(CHANGED)
    message = refusal(server, "counts.bin", tmp_path)
    assert all(part in message for part in (sha256(CONTENT), sha256(CHANGED), str(path), "delete that file"))
    assert fetch(server, "counts.bin", tmp_path, sha256=sha256(CHANGED)).read_bytes() == CHANGED
    assert fetch(server, "counts.bin", tmp_path).read_bytes() == CHANGED
    assert len(server.asked) == 1


def test_a_file_that_changed_on_the_server_is_refused_by_the_recorded_checksum(server, tmp_path):
    path = fetch(server, "counts.bin", tmp_path)
    path.unlink()
    server.content = CHANGED
    message = refusal(server, "counts.bin", tmp_path)
    assert sha256(CONTENT) in message
    assert sha256(CHANGED) in message
    assert not path.exists()
    assert fetch(server, "counts.bin", tmp_path, sha256=sha256(CHANGED)).read_bytes() == CHANGED


def test_a_name_taken_by_another_address_is_refused(server, tmp_path):
    fetch(server, "counts.bin", tmp_path)
    assert "another filename" in refusal(server, "other.bin", tmp_path, filename="counts.bin")


def test_an_unreadable_record_is_named(server, tmp_path):
    fetch(server, "counts.bin", tmp_path)
    for content in ("{", "[]", "{}"):
        (tmp_path / "counts.bin.record.json").write_text(content)
        assert "counts.bin.record.json should hold" in refusal(server, "counts.bin", tmp_path)


def test_a_record_is_whole_or_absent(server, tmp_path, monkeypatch):
    def fail(path, content):
        path.write_text(content.decode()[:6])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(KeyboardInterrupt):
        fetch(server, "counts.bin", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["counts.bin"]


def test_a_redirect_is_followed(server, tmp_path):
    assert fetch(server, "moved.bin", tmp_path).read_bytes() == CONTENT


def test_the_name_is_the_last_part_of_the_address_without_its_query(server, tmp_path):
    assert fetch(server, "my%20counts.bin?version=2", tmp_path).name == "my counts.bin"


def test_the_cache_folder_follows_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("GENAILAB_PYRO_DATA", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    path = download(f"{server.url}/counts.bin", progress=False)
    assert path.parent == tmp_path / "here"
    monkeypatch.delenv("GENAILAB_PYRO_DATA")
    assert "genailab_pyro" in str(cache_folder())


def test_progress_is_shown_only_where_asked_for(server, tmp_path, capfd):
    fetch(server, "counts.bin", tmp_path / "quiet")
    assert capfd.readouterr().err == ""
    download(f"{server.url}/counts.bin", folder=tmp_path / "loud", progress=True)
    assert "100%" in capfd.readouterr().err


@pytest.mark.parametrize("url", ["file:///etc/hosts", "ftp://example.org/a", "counts.bin", "http:///a"])
def test_other_addresses_than_http_are_refused(url, tmp_path):
    with pytest.raises(ValueError, match="http:// or https://"):
        download(url, folder=tmp_path)


@pytest.mark.parametrize("filename", ["../a", "a/b", "..", "."])
def test_a_file_name_cannot_leave_the_folder(filename, tmp_path):
    with pytest.raises(ValueError, match="plain name"):
        download("http://127.0.0.1:1/x", folder=tmp_path, filename=filename)


@pytest.mark.parametrize("checksum", ["", "abc", "g" * 64])
def test_a_malformed_checksum_is_refused(checksum, tmp_path):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        download("http://127.0.0.1:1/x", sha256=checksum, folder=tmp_path)
