"""A real S3 server on loopback: SeaweedFS, with one bucket and one user."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from etd_ds.contract import launch

WEED = shutil.which("weed", path=str(Path(sys.executable).parent))
KEY, SECRET = "tester", "a-secret-that-must-not-be-seen"


@dataclass
class ObjectStore:
    folder: Path
    ports: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[3]}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to know."""
        return {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": self.url,
                "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip

    def start(self) -> ObjectStore:
        assert WEED is not None
        self.folder.mkdir()
        # each HTTP port has one for gRPC beside it, 10000 above unless it is named
        self.ports = tuple(launch.free_port() for _ in range(8))
        who = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
               "actions": ["Admin", "Read", "Write", "List"]}  # fmt: skip
        (self.folder / "s3.json").write_text(json.dumps({"identities": [who]}))
        # its logs in its own folder; and it goes on taking files on a disk that is nearly full (its own wish: 1 % free)
        command = [WEED, f"-logdir={self.folder}", "server", "-volume.minFreeSpace=16MiB"]
        command += [f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # not served: their ports are always the same
        command += [f"-s3.config={self.folder / 's3.json'}", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
        for part, http, grpc in zip(("master", "volume", "filer", "s3"), self.ports[:4], self.ports[4:], strict=True):
            command += [f"-{part}.port={http}", f"-{part}.port.grpc={grpc}"]
        with (self.folder / "log").open("ab") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        deadline = time.monotonic() + 60
        try:
            while not self._up():
                assert self.process.poll() is None, (self.folder / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
                time.sleep(0.1)
        except BaseException:
            self.end()
            raise
        return self

    def end(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        for port in self.ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)

    def _up(self) -> bool:
        """The bucket is there, and takes something."""
        import s3fs

        try:
            if httpx.get(f"{self.url}/status", timeout=1).status_code >= 500:
                return False
            client = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=self.url, skip_instance_cache=True)
            client.retries = 1
            if not client.exists("bucket"):
                client.mkdir("bucket")
            client.pipe_file("bucket/up", b"yes")
        except (httpx.TransportError, OSError):
            return False
        return True
